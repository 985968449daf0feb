"""A verifier process, forked by its `guardian`.

Reads JSON lists of texts from a socket, answers each with what FUNCTION(*texts) returns, ends with
the socket. JSON and not pickle: a process that handles untrusted text must not be able to run
anything in its parent. Imports nothing of the package, so that a start costs no more than
FUNCTION's module.

Before the first text the process is sealed, unless MODULE.SEALED is False (a reward function of the
user's own): Python code in it can no longer open sockets, start processes or write files. That is a
second wall, not a sandbox: native code could.
"""

import contextlib
import importlib
import json
import os
import resource
import sys
from multiprocessing.connection import Connection

# bytes; a factorial tower fails in here instead of pushing the training run out of memory
ADDRESS_SPACE = 4 << 30
CPU_MARGIN_S = 10
MEMORY_GROWTH = 512 << 20  # bytes since the start; then a fresh process
_SEALED_OFF = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "os.kill", "os.link", "os.symlink",
    "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "shutil.", "urllib.", "webbrowser.",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC


def main(fd: int, timeout_s: float, name: str) -> None:
    """Serves until the parent closes the socket; the first message says "ready", or "failed" and
    why.

    Replies are "done", or "last" if the process has grown too large and ends.
    """
    connection = Connection(fd)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, ADDRESS_SPACE)
    try:
        path, _, function = name.partition(":")
        module = importlib.import_module(path)
        judge = getattr(module, function)
    except (ImportError, AttributeError, ValueError) as e:
        _send(connection, ["failed", f"{name}: {type(e).__name__}: {e}"])
        return
    if getattr(module, "SEALED", True):
        sys.dont_write_bytecode = True
        sys.addaudithook(_forbid)
    _send(connection, ["ready", ""])
    begin = _resident_bytes()
    while True:
        try:
            texts = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        # Should parent and guardian die while an answer hangs, the kernel still ends this process.
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + timeout_s) + CPU_MARGIN_S)
        try:
            value = judge(*texts)
        except (
            Exception
        ):  # the edge: whatever an answer provokes is its own verdict, and is counted as such
            value = "error"
        grown = _resident_bytes() - begin > MEMORY_GROWTH
        _send(connection, ["last" if grown else "done", value])
        if grown:
            return


def _send(connection: Connection, message: list[str]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _forbid(event: str, arguments: tuple[object, ...]) -> None:
    """The audit hook of a sealed process; it cannot be taken away again."""
    writes = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
    if writes or event.startswith(_SEALED_OFF):
        raise PermissionError(f"{event} in a verifier process")


def _resident_bytes() -> int:
    """Memory in use; where the system does not tell, 0. (getrusage's peak would be the parent's,
    which a child takes over.)
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _limit(what: int, soft: int) -> None:
    hard = resource.getrlimit(what)[1]
    # not every system has every limit; the parent's deadline needs none of them
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(
            what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
        )
