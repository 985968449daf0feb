"""A verifier process: `python -m p2o_jax.rewards.worker FD TIMEOUT_S MODULE:FUNCTION`.

Reads JSON lists of texts from the socket FD, answers each with what FUNCTION(*texts) returns, ends with the socket. JSON and
not pickle: a process that handles untrusted text must not be able to run anything in its parent. Imports nothing of the
package, so that a start costs no more than FUNCTION's module.
"""

import contextlib
import importlib
import json
import resource
import signal
import sys
from multiprocessing.connection import Connection

ADDRESS_SPACE = 4 << 30  # bytes; a factorial tower fails in here instead of pushing the training run out of memory
CPU_MARGIN_S = 10


def main(fd: int, timeout_s: float, name: str) -> None:
    """Serves until the parent closes the socket; the first message says "ready", or "failed" and why."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    connection = Connection(fd)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, ADDRESS_SPACE)
    try:
        module, function = name.split(":")
        judge = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as e:
        _send(connection, ["failed", f"{name}: {type(e).__name__}: {e}"])
        return
    _send(connection, ["ready", ""])
    while True:
        try:
            texts = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        # Should the parent die while an answer hangs, nobody is left to kill this process but the kernel.
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + timeout_s) + CPU_MARGIN_S)
        try:
            reply = ["done", judge(*texts)]
        except Exception:  # the edge: whatever an answer provokes is its own verdict, and is counted as such
            reply = ["done", "error"]
        _send(connection, reply)


def _send(connection: Connection, message: list[str]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _limit(what: int, soft: int) -> None:
    hard = resource.getrlimit(what)[1]
    with contextlib.suppress(OSError, ValueError):  # not every system has every limit; the parent's deadline needs none of them
        resource.setrlimit(what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
