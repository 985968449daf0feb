"""Renders a chat template in a process that can be killed; see `template_worker` for the reason."""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from p2o_jax.data import template_worker
from p2o_jax.runtime import subprocesses
from p2o_jax.types import Message

CPU_S = 5  # processor time per rendering; ordinary templates take less than a millisecond
MEMORY_BYTES = 1 << 30  # address space of the process
MAX_CHARS = 4 << 20  # in a rendered text; the longest context windows are about a million tokens
WALL_S = 120.0  # a fallback in case the limit on processor time has no effect
MAX_ATTEMPTS = 2  # one death may come from outside the process; a second one is the template's
_WORKER = Path(template_worker.__file__)


class TemplateFailed(Exception):
    """A template did not render; the message gives the reason."""


class ChatTemplate:
    """A Jinja chat template with its variables. `date` (ISO) is the only date that it sees.

    The process starts with the first rendering and ends with this object. Safe to share between
    threads.
    """

    def __init__(self, template: str, variables: Mapping[str, Any], date: str):
        setup = {"template": template, "variables": dict(variables), "date": date}
        self._setup = template_worker.encode(
            setup | {"cpu_s": CPU_S, "memory_bytes": MEMORY_BYTES, "max_chars": MAX_CHARS}
        )
        self._lock = threading.Lock()
        self._workers: list[_RenderProcess] = []  # at most one
        # also runs at interpreter exit
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)

    def render(self, messages: Sequence[Message]) -> str:
        """Renders the messages and the opening of the assistant's turn.

        Raises:
            TemplateFailed: the template is invalid, rejects these messages, or exceeds a limit.
        """
        request = template_worker.encode([dict(m) for m in messages])
        with self._lock:
            for _ in range(MAX_ATTEMPTS):
                reply = self._ask(request)
                if reply:
                    break
            else:
                raise TemplateFailed("the process that renders it died twice")
        kind, text = reply
        if kind == "error":
            raise TemplateFailed(text)
        return text

    def _ask(self, request: bytes) -> tuple[str, str] | None:
        """The reply to a request; None if the process died, perhaps killed from outside."""
        if not self._workers:
            self._workers.append(_RenderProcess(self._setup))
        worker = self._workers[0]
        try:
            return worker.ask(request)
        except (EOFError, OSError):
            exit_code = worker.wait()
            _kill_all(self._workers)
            if exit_code == -signal.SIGXCPU:
                raise TemplateFailed(f"takes more than {CPU_S} s of processor time") from None
            return None
        except BaseException:
            # Interrupted or too late: a late reply must not be read as the next request's.
            _kill_all(self._workers)
            raise


class _RenderProcess:
    """A rendering process and the socket to it."""

    def __init__(self, setup: bytes):
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(theirs.fileno())],
            env=subprocesses.environment()
            | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        self._unsent = setup

    def ask(self, request: bytes) -> tuple[str, str]:
        """Sends a request and returns the kind and text of the reply.

        Raises:
            EOFError, OSError: the process has ended.
            TemplateFailed: no reply came within WALL_S.
        """
        if self._unsent:
            self._connection.send_bytes(self._unsent)
            self._unsent = b""
        self._connection.send_bytes(request)
        if not self._connection.poll(WALL_S):
            raise TemplateFailed(f"no reply within {WALL_S:.0f} s")
        kind, text = json.loads(self._connection.recv_bytes())
        return kind, text

    def wait(self) -> int:
        """The exit code of the process, which is killed if it does not end within a second."""
        try:
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def kill(self) -> None:
        """Ends the process and closes the socket."""
        self._process.kill()
        self._process.wait()
        self._connection.close()


def _kill_all(workers: list[_RenderProcess]) -> None:
    for worker in workers:
        worker.kill()
    workers.clear()
