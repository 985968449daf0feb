"""What watches a run: requests to leave, steps that hang, rewards that teach nothing."""

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
    """The machine is about to be taken away: leave, with what there is saved. No `Exception`, so
    that nobody takes it for a failure.
    """


# A process of its own, because threads of Python stand still while C code holds the interpreter's
# lock. It forwards each signal.
_OVERSEER = """
import os, select, signal, sys
parent, seconds = int(sys.argv[1]), float(sys.argv[2])
while number := os.read(0, 1):
    os.write(0, number)
    if number[0] == signal.SIGTERM:
        end = select.poll()
        end.register(0, 0)  # the other end is closed: the process has left
        if not end.poll(1000 * seconds) and os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)
        break
"""


class Preemption:
    """A context manager that takes SIGTERM as a request: the next `poll` raises `Preempted`, on all
    processes at the same one.

    If the process is still there `grace_s` later, a thread ends it with exit code 0: what was saved
    before, and the journals of prompt phases, are what the next start continues from. If that
    thread cannot run either, because C code holds the interpreter's lock, another process kills
    this one `KILL_AFTER_S` later (exit code 137).

    The clock runs until the process is gone, not only until the context is left: Python waits at
    its end for threads that compile.

    The signal is noticed by a thread, because Python runs handlers only where the main thread is
    between two instructions.
    """

    KILL_AFTER_S = 1.0

    def __init__(self, grace_s: float, any_process: Callable[[bool], bool] = bool):
        """`any_process`: whether something holds on any process; all processes poll at the same
        places.
        """
        self.grace_s, self.any_process = grace_s, any_process
        self._asked = threading.Event()
        self._left = threading.Event()

    def poll(self) -> None:
        """Raises Preempted if SIGTERM has come, here or elsewhere."""
        if self.any_process(self._asked.is_set()):
            raise Preempted

    def __enter__(self) -> Self:
        self._socket, other = socket.socketpair()
        self._socket.setblocking(False)
        seconds = str(self.grace_s + self.KILL_AFTER_S)
        # a group of processes may get them, the overseer with it
        ours = {
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
        }
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ours)
        with other:
            command = [sys.executable, "-I", "-S", "-c", _OVERSEER, str(os.getpid()), seconds]
            self._overseer = subprocess.Popen(
                command, stdin=other.fileno(), stdout=subprocess.DEVNULL
            )
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # without one in Python nothing is written
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
        self._socket.shutdown(socket.SHUT_RDWR)  # ends the thread, and the other process
        self._thread.join()
        self._socket.close()
        self._overseer.wait()

    def _watch(self) -> None:
        while select.select([self._socket], [], []) and (number := self._socket.recv(1)):
            if number[0] == signal.SIGTERM:
                self._asked.set()
                print(
                    f"SIGTERM: saving, and leaving within {self.grace_s:g} s",
                    file=sys.stderr,
                    flush=True,
                )
                if not self._left.wait(self.grace_s):
                    print(
                        "time is up; the same command goes on from the last checkpoint",
                        file=sys.stderr,
                        flush=True,
                    )
                    run_lock.release_all()
                    os._exit(0)
                return


class Watchdog:
    """Writes the stacks of all threads to standard error whenever `seconds` have passed since
    the last `restart`; 0: never.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds

    def restart(self) -> None:
        """A step has ended. The clock is C's, and runs where Python is stuck."""
        if self.seconds and sys.__stderr__:
            faulthandler.dump_traceback_later(self.seconds, repeat=True, file=sys.__stderr__)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()


class FlatRewards:
    """Notices when `limit` steps in a row had equal rewards only: nothing was learnt in any; 0:
    never. Again after 2, 4, 8 times.
    """

    def __init__(self, limit: int):
        self.limit, self.steps, self.next = limit, 0, limit

    def notice(self, lowest: float, highest: float, values: Mapping[str, float]) -> str:
        """What to tell after a step with these rewards and metrics; mostly nothing."""
        if lowest != highest:
            self.steps, self.next = 0, self.limit
            return ""
        self.steps += 1
        if not self.limit or self.steps < self.next:
            return ""
        self.next *= 2
        return (
            f"!!! all rewards were equal in each of the last {self.steps} steps (now {lowest:g}):"
            f" nothing is learnt. Look at responses cut off: {values['rollout/frac_truncated']:.2f}"
            f" (config.rollout.max_new_tokens); with a closed box: {values['reward/format']:.2f}"
            " (config.data.prompt_template, config.chat); not judged in time:"
            f" {values['reward/frac_time_out']:.2f} (config.reward.timeout_s); reference answers"
            f" that cannot be read: {values['reward/frac_error']:.2f} (the data); samples.jsonl"
        )
