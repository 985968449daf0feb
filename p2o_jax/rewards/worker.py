"""A worker process of a `Pool`, forked by its `guardian`.

Reads lists of strings from a socket, replies with the return value of FUNCTION(*strings), and ends
when the socket is closed. Messages are JSON and not pickle, because a process that handles
untrusted text must not be able to run code in its parent. This module imports nothing from the
package, so that a worker only imports FUNCTION's module.

Before the first task the process is sealed, unless MODULE.SEALED is False, as for custom reward
functions. Python code in a sealed process cannot open sockets, start processes or write files. This
is a second line of defense and not a sandbox: native code is not restricted.
"""

import contextlib
import importlib
import json
import os
import resource
import sys
from multiprocessing.connection import Connection

# Bytes. A tower of factorials fails here instead of exhausting the training run's memory.
ADDRESS_SPACE = 4 << 30
CPU_MARGIN_S = 10
MEMORY_GROWTH = 512 << 20  # bytes since the start; a process that grows more is replaced
_SEALED_OFF = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "pty.",
    "os.kill",
    "os.link",
    "os.symlink",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "shutil.",
    "urllib.",
    "webbrowser.",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC


def main(fd: int, timeout_s: float, name: str) -> None:
    """Serves tasks until the parent closes the socket.

    The first message is "ready", or "failed" with the reason. Each reply is "done", or "last" if
    the process has grown too large and ends.
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
        # If parent and guardian die while an answer hangs, the kernel still ends this process.
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + timeout_s) + CPU_MARGIN_S)
        try:
            value = judge(*texts)
        except Exception:  # the edge: an answer may cause any exception, which is its verdict
            value = "error"
        grown = _resident_bytes() - begin > MEMORY_GROWTH
        _send(connection, ["last" if grown else "done", value])
        if grown:
            return


def _send(connection: Connection, message: list[str]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _forbid(event: str, arguments: tuple[object, ...]) -> None:
    """The audit hook of a sealed process. An audit hook cannot be removed."""
    writes = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
    if writes or event.startswith(_SEALED_OFF):
        raise PermissionError(f"{event} in a verifier process")


def _resident_bytes() -> int:
    """Memory in use, or 0 if unknown. The peak of getrusage is not used: a child inherits it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _limit(what: int, soft: int) -> None:
    hard = resource.getrlimit(what)[1]
    # not every system has every limit; the parent's deadline does not depend on them
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(
            what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
        )
