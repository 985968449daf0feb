"""Compiled programs by key: each for fixed shapes, compiled on first use or ahead of time."""

import os
import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class ProgramCache:
    """Executables by key, compiled several at a time.

    An executable accepts only the shapes it was compiled for, so shapes without a key cannot run.

    Args:
        lower: returns a key's program, traced for abstract arguments (`jax.stages.Lowered`).
    """

    def __init__(self, lower: Callable[[Any], Any]):
        self.lower = lower
        self._lock = threading.Lock()
        self._compiled: dict[Hashable, Future[Any]] = {}
        self._closed = False
        self._threads = ThreadPoolExecutor(
            max(os.cpu_count() or 1, 1), thread_name_prefix="compile"
        )

    def __getitem__(self, key: Hashable) -> Any:
        """Returns the executable. Waits if it is being compiled, and compiles it otherwise."""
        return self._future(key, lambda compile_into, future: compile_into(future)).result()

    def compile(
        self, keys: Iterable[Hashable], progress: Callable[[int], None] = lambda n: None
    ) -> None:
        """Compiles all of these programs; `progress` is called with 1 after each.

        Raises:
            Exception: the first compilation failure, after all others have finished. An exception
                raised by `progress` cancels what has not started.
        """
        futures = [self._future(key, self._threads.submit) for key in keys]
        try:
            for future in futures:
                future.exception()
                progress(1)
        except BaseException:  # stopping: start nothing more
            self._threads.shutdown(wait=False, cancel_futures=True)
            raise
        for future in futures:
            future.result()

    def compile_later(self, keys: Iterable[Hashable]) -> None:
        """Compiles these programs in the background, one after another; a program that is needed
        before its turn does not wait for the others. A failure is raised where it is needed.
        """

        def work() -> None:
            for key in keys:
                if self._closed:
                    return
                self._future(key, lambda compile_into, future: compile_into(future)).exception()

        self._threads.submit(work)

    def close(self) -> None:
        """Stops compiling in the background, after the program that is being compiled."""
        self._closed = True
        self._threads.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(self._compiled)

    def _future(self, key: Hashable, run: Callable[..., Any]) -> "Future[Any]":
        def compile_into(future: Future[Any]) -> None:
            try:
                future.set_result(self.lower(key).compile())
            except BaseException as e:
                future.set_exception(e)

        with self._lock:
            known = key in self._compiled
            future = self._compiled.setdefault(key, Future())
        if not known:
            run(compile_into, future)
        return future
