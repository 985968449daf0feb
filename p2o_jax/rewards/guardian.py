"""A worker and its guardian, started by `Pool`: `guardian.py FD TIMEOUT_S MODULE:FUNCTION`.

The process forks once. The child is the worker (`worker.main`). The parent is the guardian, which
runs no reward code. It waits until the worker ends or the other end of socket FD is closed. `Pool`
closes it at a deadline and in `Pool.close`, and the kernel does when the training process dies,
even by SIGKILL. The guardian then kills every process that the worker started, waits until they
are gone, and ends.

On Linux the guardian adopts processes whose parent died (PR_SET_CHILD_SUBREAPER), so its
descendants include daemons and processes in other sessions. Elsewhere it only kills its process
group. Native or malicious code with the same user id can kill the guardian. `Pool` then kills the
process group, but does not reach processes that moved to another session. Run untrusted code in a
container.
"""

import contextlib
import ctypes
import importlib.util
import os
import select
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LINUX = sys.platform == "linux"


def main(fd: int, timeout_s: float, judge: str) -> None:
    """Runs the worker, and kills the processes that it leaves behind."""
    os.set_inheritable(fd, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signaled, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    # These signals are for the training process, which still needs verdicts.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore)
    signal.signal(signal.SIGCHLD, _ignore)
    guardian = os.getpid()
    worker = os.fork()
    if worker:
        _wait(fd, signaled, worker)
        _end()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    os.close(signaled)
    os.close(wakeup)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == guardian:
        _import_package()
        from p2o_jax.rewards import worker as serving

        serving.main(fd, timeout_s, judge)


def _ignore(number: int, frame: object) -> None:
    """Ignores a signal. Unlike SIG_IGN, programs started by a reward function do not inherit it."""


def _wait(fd: int, signaled: int, worker: int) -> None:
    """Returns when the socket's other end is closed or the worker has ended."""
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP only
    poll.register(signaled, select.POLLIN)
    while fd not in (ready for ready, _ in poll.poll()):
        os.read(signaled, 512)
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                if pid == worker:
                    return


def _end() -> None:
    """Kills all descendants, then the process group, this process included."""
    if _LINUX:
        with contextlib.suppress(OSError):  # no /proc, or no children left
            seen: set[int] = set()
            while new := _descendants() - seen:
                for pid in new:  # stopped first, so that it cannot start another process
                    _signal(pid, signal.SIGSTOP)
                seen |= new
            for pid in seen:
                _signal(pid, signal.SIGKILL)
            while seen:
                os.waitpid(-1, 0)
    os.killpg(0, signal.SIGKILL)


def _descendants() -> set[int]:
    """The ids of all descendants of this process."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as f:
                parent = int(f.read().rpartition(b")")[2].split()[1])  # "PID (NAME) STATE PPID ..."
                children.setdefault(parent, []).append(int(name))
    descendants: set[int] = set()
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        descendants.update(below)
        todo += below
    return descendants


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _import_package() -> None:
    """Imports `p2o_jax` from this file's folder, even if the import path has another copy."""
    spec = importlib.util.spec_from_file_location(
        "p2o_jax", Path(__file__).parents[1] / "__init__.py"
    )
    assert spec and spec.loader
    sys.modules["p2o_jax"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
