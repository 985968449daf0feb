"""Guards of a run: preemption by SIGTERM, hanging steps, and rewards that are all equal."""

import faulthandler
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Self

from p2o_jax.runtime import run_lock


class Preempted(BaseException):
    """The run was asked to save and exit. A `BaseException`, because it is not an error."""


# Runs in a process of its own, because Python threads cannot run while C code holds the GIL. It
# forwards each signal.
_OVERSEER = """
import os, select, signal, sys
parent, seconds = int(sys.argv[1]), float(sys.argv[2])
while number := os.read(0, 1):
    os.write(0, number)
    if number[0] == signal.SIGTERM:
        end = select.poll()
        end.register(0, 0)  # hangs up when the process has exited
        if not end.poll(1000 * seconds) and os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)
        break
"""


class Preemption:
    """A context manager that turns SIGTERM into `Preempted`, raised by the next `poll`.

    All processes raise at the same `poll`. If the process has not exited after `grace_s` seconds, a
    thread ends it with exit code 0. The next start then continues from the last checkpoint and from
    the journals of prompt phases. If that thread cannot run because C code holds the GIL, another
    process kills this one `KILL_AFTER_S` later (exit code 137).

    The grace period ends when the process exits, not when the context does: at exit, Python waits
    for threads that compile.

    A thread receives the signal, because Python runs signal handlers only between two instructions
    of the main thread.

    Args:
        grace_s: seconds from SIGTERM until the process is ended.
        any_process: whether a condition is true on any process. All processes poll in step.
    """

    KILL_AFTER_S = 1.0

    def __init__(self, grace_s: float, any_process: Callable[[bool], bool] = bool):
        self.grace_s, self.any_process = grace_s, any_process
        self._asked = threading.Event()
        self._left = threading.Event()

    def poll(self) -> None:
        """Raises Preempted if any process has received SIGTERM."""
        if self.any_process(self._asked.is_set()):
            raise Preempted

    def __enter__(self) -> Self:
        self._socket, other = socket.socketpair()
        self._socket.setblocking(False)
        seconds = str(self.grace_s + self.KILL_AFTER_S)
        # May be sent to the whole process group, which includes the overseer.
        ours = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ours)
        with other:
            command = [sys.executable, "-I", "-S", "-c", _OVERSEER, str(os.getpid()), seconds]
            self._overseer = subprocess.Popen(
                command, stdin=other.fileno(), stdout=subprocess.DEVNULL
            )
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # The wakeup descriptor is only written to if there is a handler in Python.
        self._handler = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
        self._wakeup = signal.set_wakeup_fd(self._socket.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="preemption", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._asked.is_set():
            return
        self._left.set()
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGTERM, self._handler)
        self._socket.shutdown(socket.SHUT_RDWR)  # ends the thread and the overseer
        self._thread.join()
        self._socket.close()
        self._overseer.wait()

    def _watch(self) -> None:
        while select.select([self._socket], [], []) and (number := self._socket.recv(1)):
            if number[0] == signal.SIGTERM:
                self._asked.set()
                print(
                    f"SIGTERM: saving, and exiting within {self.grace_s:g} s",
                    file=sys.stderr,
                    flush=True,
                )
                if not self._left.wait(self.grace_s):
                    print(
                        "time is up; the same command continues from the last checkpoint",
                        file=sys.stderr,
                        flush=True,
                    )
                    run_lock.release_all()
                    os._exit(0)
                return


class Watchdog:
    """Writes the stacks of all threads to standard error every `seconds` without a `restart`.

    0 disables it.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds

    def restart(self) -> None:
        """Restarts the clock after a step. The clock also runs while Python is stuck in C code."""
        if self.seconds and sys.__stderr__:
            faulthandler.dump_traceback_later(self.seconds, repeat=True, file=sys.__stderr__)

    def close(self) -> None:
        """Stops the clock."""
        faulthandler.cancel_dump_traceback_later()


class FlatRewards:
    """Warns when all rewards were equal in each of `limit` steps in a row, so nothing was learned.

    Warns again after 2, 4, 8 times as many steps. A limit of 0 disables it.
    """

    def __init__(self, limit: int):
        self.limit, self.steps, self.next = limit, 0, limit

    def notice(self, lowest: float, highest: float, values: Mapping[str, float]) -> str:
        """The warning after a step with these rewards and metrics; usually empty."""
        if lowest != highest:
            self.steps, self.next = 0, self.limit
            return ""
        self.steps += 1
        if not self.limit or self.steps < self.next:
            return ""
        self.next *= 2
        return (
            f"!!! all rewards were equal in each of the last {self.steps} steps (now {lowest:g}):"
            " nothing is learned. Check the fraction of truncated responses:"
            f" {values['rollout/frac_truncated']:.2f} (config.rollout.max_new_tokens); with a"
            f" closed box: {values['reward/format']:.2f} (config.data.prompt_template,"
            f" config.chat); not judged in time: {values['reward/frac_time_out']:.2f}"
            " (config.reward.timeout_s); with an unreadable reference answer:"
            f" {values['reward/frac_error']:.2f} (the data); and samples.jsonl"
        )
