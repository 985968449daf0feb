"""A pool of worker processes with a hard deadline per task.

`concurrent.futures` cannot kill a single task. The children of `multiprocessing.Process` first
import the parent's main module, and with it JAX, which takes seconds and gigabytes.

Every worker runs in a session of its own under a `guardian`. The guardian kills the processes that
a reward function started: at the deadline, when the worker ends, on `close`, and when this process
dies.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Literal, Self

from p2o_jax.runtime.subprocesses import environment

TASKS_PER_WORKER = 5000  # then the worker is replaced, because SymPy's caches only grow
START_TIMEOUT_S = 120.0
MAX_FAILED_STARTS = 3  # in a row
END_TIMEOUT_S = 5.0  # for a guardian to end its worker; reached only if it was killed or stopped
MAX_ATTEMPTS = 2  # a first crash may be due to a full machine; a second is blamed on the task

Task = tuple[str, ...]


class Pool:
    """A context manager whose `run` maps a function over tasks in worker processes.

    Workers start when they are first needed, run until `close`, and see no accelerator. `counts`
    has the number of workers that were "started", lost to a "time_out" or a "crash", and "recycled"
    after TASKS_PER_WORKER tasks or when they grew too large. Not thread-safe.

    Args:
        size: the largest number of workers.
        timeout_s: seconds per task.
        judge: "module:function", called as function(*task) -> str.
        env: environment variables that workers get besides those of `subprocesses.environment`.
    """

    def __init__(self, size: int, timeout_s: float, judge: str, env: Sequence[str] = ()):
        self.size = size
        self.timeout_s = timeout_s
        self.judge = judge
        self.env = tuple(env)
        self.counts: Counter[str] = Counter()
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        # also runs at interpreter exit
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills all workers; a later `run` starts new ones."""
        _kill_all(self._workers)

    def run(self, tasks: Sequence[Task], done: Callable[[], None] = lambda: None) -> list[str]:
        """Runs all tasks and returns their results in order.

        A result is the return value of `judge`, "time_out" at the deadline, or "error" if the
        task's worker died twice. The deadline starts when a worker gets the task. `done` is called
        after each task.

        Raises:
            RuntimeError: the workers do not start.
        """
        results: list[str | None] = [None] * len(tasks)
        todo = deque(range(len(tasks)))
        crashes = Counter[int]()

        def settle(index: int, result: str) -> None:
            results[index] = result
            done()

        try:
            while todo or any(w.task is not None for w in self._workers):
                self._assign(tasks, todo)
                for worker, event, value in self._events():
                    index, worker.task = worker.task, None
                    if event in ("done", "last"):
                        worker.tasks_done += 1
                    if event == "last" or worker.tasks_done >= TASKS_PER_WORKER:
                        self.counts["recycled"] += 1
                        self._drop(worker)
                    elif event in ("crash", "time_out"):
                        self._drop(worker)
                    if index is None:
                        self._start_ended(event, value)
                    elif event == "crash" and crashes[index] + 1 < MAX_ATTEMPTS:
                        crashes[index] += 1
                        todo.appendleft(index)
                    else:
                        settle(
                            index,
                            {"done": value, "last": value, "time_out": "time_out"}.get(
                                event, "error"
                            ),
                        )
        finally:
            for worker in [w for w in self._workers if w.task is not None]:  # after an interrupt
                self._drop(worker)
        assert None not in results
        return [r for r in results if r is not None]

    def _assign(self, tasks: Sequence[Task], todo: deque[int]) -> None:
        """Gives tasks to idle workers, and starts more workers if there is work for them."""
        for worker in [w for w in self._workers if w.idle and todo]:
            if todo and worker.give(todo[0], tasks, self.timeout_s):
                todo.popleft()
            elif todo:  # it died while idle
                self.counts["crash"] += 1
                self._drop(worker)
        num_free = sum(not w.ready for w in self._workers)
        while len(self._workers) < self.size and num_free < len(todo):
            self._workers.append(_Worker(self.judge, self.timeout_s, self.env))
            self.counts["started"] += 1
            num_free += 1

    def _events(self) -> list[tuple["_Worker", str, str]]:
        """Waits for workers to reply, die or time out; returns (worker, event, value) of each."""
        waiting = [w for w in self._workers if not w.idle]
        remaining = min(w.deadline for w in waiting) - time.monotonic()
        readable = wait([w.connection for w in waiting], max(remaining, 0))
        now = time.monotonic()
        events = []
        for worker in waiting:
            if worker.connection in readable:
                events.append((worker, *worker.receive()))
            elif worker.deadline <= now:
                events.append((worker, "time_out", ""))
        for _, event, _ in events:
            if event in ("crash", "time_out"):
                self.counts[event] += 1
        return events

    def _start_ended(self, event: str, value: str) -> None:
        if event == "ready":
            self._failed_starts = 0
            return
        self._failed_starts += 1
        if event == "failed" or self._failed_starts >= MAX_FAILED_STARTS:
            failed, self._failed_starts = self._failed_starts, 0
            self.close()
            raise RuntimeError(f"verifier workers do not start ({failed} tried): {value or event}")

    def _drop(self, worker: "_Worker") -> None:
        worker.kill()
        self._workers.remove(worker)


class _Worker:
    """A guardian's process, the socket to its worker, and the worker's task."""

    def __init__(self, judge: str, timeout_s: float, env: Sequence[str]):
        self.connection, theirs = Pipe()
        guardian = Path(__file__).with_name("guardian.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(guardian), str(theirs.fileno()), str(timeout_s), judge],
            env=_environment(env),
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # libraries may print untrusted text
        )
        theirs.close()
        self.ready = False
        self.task: int | None = None
        self.tasks_done = 0
        self.deadline = time.monotonic() + START_TIMEOUT_S

    @property
    def idle(self) -> bool:
        """Whether the worker has started and has no task."""
        return self.ready and self.task is None

    def give(self, index: int, tasks: Sequence[Task], timeout_s: float) -> bool:
        """Sends a task. Returns False if the process has died."""
        try:
            self.connection.send_bytes(json.dumps(tasks[index]).encode())
        except OSError:
            return False
        self.task = index
        self.deadline = time.monotonic() + timeout_s
        return True

    def receive(self) -> tuple[Literal["ready", "failed", "done", "last", "crash"], str]:
        """The event and value of the worker's message, or a crash if there is none."""
        try:
            event, value = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return "crash", ""
        self.ready = True
        return event, value

    def kill(self) -> None:
        """Ends the worker and all processes that it started."""
        self.connection.close()  # makes the guardian kill them
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_TIMEOUT_S)
        # in case the guardian was killed or stopped
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _environment(names: Sequence[str]) -> dict[str, str]:
    """An environment without keys or accelerators, one thread, and the parent's import path."""
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    forced = {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
        "PYTHONHASHSEED": "0",  # the order of sets is the same in every worker
    }
    return environment(names) | forced


def _kill_all(workers: list[_Worker]) -> None:
    for worker in workers:  # first, so that all guardians work at the same time
        worker.connection.close()
    for worker in workers:
        worker.kill()
    workers.clear()
