"""Worker processes that can be killed one at a time: a hard deadline per task, whatever the task
does.

Not `concurrent.futures`, which cannot end one task, and not `multiprocessing.Process`, whose
children import the parent's main module (that is JAX, seconds and gigabytes) before they do
anything.

Every worker has a session of its own and a guardian (`guardian`), which ends the processes that a
reward function started: at the deadline, when the worker ends, on `close`, and when this process
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

TASKS_PER_WORKER = 5000  # then a fresh one: SymPy's caches only grow
START_TIMEOUT_S = 120.0
MAX_FAILED_STARTS = 3  # in a row
END_TIMEOUT_S = 5.0  # for a guardian to end its worker; only a killed or stopped one needs it all
MAX_ATTEMPTS = 2  # a crash may be the fault of a full machine; a second one is the task's

Task = tuple[str, ...]


class Pool:
    """A context manager whose `run` maps tasks to `judge`'s answers in processes that see no
    accelerator.

    `judge` is "module:function", called as function(*task) -> str. `env` names variables that
    workers get besides those of `subprocesses.environment`. Workers start when they are first
    needed and stay until `close`. `counts` says how often a worker was started, lost to a time-out
    or a crash, and recycled: after TASKS_PER_WORKER tasks, or when it had grown too large. One
    thread at a time.
    """

    def __init__(self, size: int, timeout_s: float, judge: str, env: Sequence[str] = ()):
        self.size = size
        self.timeout_s = timeout_s
        self.judge = judge
        self.env = tuple(env)
        self.counts: Counter[str] = Counter()
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        # runs at interpreter exit, too
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills all workers; a later `run` starts new ones."""
        _kill_all(self._workers)

    def run(self, tasks: Sequence[Task], done: Callable[[], None] = lambda: None) -> list[str]:
        """For every task, in order: what `judge` returned, "time_out" at the deadline, or "error"
        if its worker died twice.

        `done` is called as tasks end. The deadline runs from when a worker that is ready gets the
        task.

        Raises:
            RuntimeError: workers do not start.
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
            for worker in [w for w in self._workers if w.task is not None]:  # we were interrupted
                self._drop(worker)
        assert None not in results
        return [r for r in results if r is not None]

    def _assign(self, tasks: Sequence[Task], todo: deque[int]) -> None:
        """Hands tasks to idle workers, and starts more if there is work for them."""
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
        """(worker, event, value) of those that replied, died or ran out of time; waits until
        there is at least one.
        """
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
    """A guardian's process, the socket to its worker, and what that is busy with."""

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
            # what libraries say about untrusted text does not belong on a terminal
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        self.ready = False
        self.task: int | None = None
        self.tasks_done = 0
        self.deadline = time.monotonic() + START_TIMEOUT_S

    @property
    def idle(self) -> bool:
        return self.ready and self.task is None

    def give(self, index: int, tasks: Sequence[Task], timeout_s: float) -> bool:
        """Sends a task; false if the process has died."""
        try:
            self.connection.send_bytes(json.dumps(tasks[index]).encode())
        except OSError:
            return False
        self.task = index
        self.deadline = time.monotonic() + timeout_s
        return True

    def receive(self) -> tuple[Literal["ready", "failed", "done", "last", "crash"], str]:
        try:
            event, value = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return "crash", ""
        self.ready = True
        return event, value

    def kill(self) -> None:
        """Ends the worker and all that it started."""
        self.connection.close()  # at which its guardian kills them
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_TIMEOUT_S)
        # unless somebody killed or stopped the guardian
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _environment(names: Sequence[str]) -> dict[str, str]:
    """Without keys, without accelerators, with one thread, and with the parent's import path."""
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    forced = {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
    }
    return environment(names) | forced


def _kill_all(workers: list[_Worker]) -> None:
    for worker in workers:  # all guardians at the same time
        worker.connection.close()
    for worker in workers:
        worker.kill()
    workers.clear()
