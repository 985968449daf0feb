"""Compiled programs by name: each for fixed shapes, made on first use or ahead of it, several at
a time.
"""

import os
import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Programs:
    """Executables by key. They take the shapes they were compiled for and nothing else: what is not
    listed cannot run.

    Args:
        lower: a key's program, traced for abstract arguments (`jax.stages.Lowered`).
    """

    def __init__(self, lower: Callable[[Any], Any]):
        self.lower = lower
        self._lock = threading.Lock()
        self._compiled: dict[Hashable, Future[Any]] = {}
        self._threads = ThreadPoolExecutor(
            max(os.cpu_count() or 1, 1), thread_name_prefix="compile"
        )

    def __getitem__(self, key: Hashable) -> Any:
        """The executable; waits while it is being compiled, compiles it if nobody does."""
        return self._future(key, lambda make, future: make(future)).result()

    def compile(
        self, keys: Iterable[Hashable], progress: Callable[[int], None] = lambda n: None
    ) -> None:
        """Has all of them compiled by the time it returns; `progress` is called with 1 for each.

        Raises:
            Exception: the first failure, after the others are done. What else is raised in
                `progress` leaves at once.
        """
        futures = [self._future(key, self._threads.submit) for key in keys]
        try:
            for future in futures:
                future.exception()
                progress(1)
        except BaseException:  # the run is left: nothing is begun any more
            self._threads.shutdown(wait=False, cancel_futures=True)
            raise
        for future in futures:
            future.result()

    def __len__(self) -> int:
        return len(self._compiled)

    def _future(self, key: Hashable, run: Callable[..., Any]) -> "Future[Any]":
        def make(future: Future[Any]) -> None:
            try:
                future.set_result(self.lower(key).compile())
            except BaseException as e:
                future.set_exception(e)

        with self._lock:
            known = key in self._compiled
            future = self._compiled.setdefault(key, Future())
        if not known:
            run(make, future)
        return future
