"""Detects processes of a run that do not start, have died, or do not reach a barrier.

Every process keeps a connection to process 0, over the port of JAX's coordinator. When a process
dies in any way, the kernel closes its connection. JAX's coordination service also detects dead
processes, but then ends the others from C++, with a number instead of a host name and without a way
for Python to add a message. It is the fallback for failures that this module does not detect.
"""

import atexit
import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from p2o_jax.runtime import run_lock

GONE = 75  # exit code if another process is the reason; EX_TEMPFAIL ("try again") of sysexits.h
PATIENCE_S = 3.0  # an exception may be caused by another process's end, whose message comes later
GRACE_S = 10.0  # the cause of another process's end may end this one too, with a better message
_BEAT_S = 5.0
_LINGER_S = 1.0  # for the others to read the last message


class Missing(Exception):
    """Processes are missing; the message says which."""


class Limits(NamedTuple):
    """Limits in seconds."""

    start: float  # until all processes must have started
    silent: float  # without a sign of life of a process
    absent: float  # that the others may wait for a process at a barrier


def _end(text: str) -> None:
    shown = "".join(c if c.isprintable() else "?" for c in text)  # sent by other processes
    print(
        f"error: {shown}; the same command continues from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    run_lock.release_all()
    os._exit(GONE)


class Peers:
    """Connections between the processes of a run.

    Args:
        address: HOST:PORT where process 0 listens.
        index: the index of this process.
        count: the number of processes.
        limits: time limits.
        end: called with a message, from another thread, when the run cannot continue.

    Raises:
        Missing: not all processes started in time, or the port of process 0 is in use.
    """

    def __init__(
        self,
        address: str,
        index: int,
        count: int,
        limits: Limits,
        end: Callable[[str], None] = _end,
    ):
        self.address, self.index, self.count = address, index, count
        self.limits, self.end = limits, end
        self.hosts = {index: socket.gethostname()}
        self.place = 0  # the number of barriers that this process has reached
        self._lines: dict[int, _Line] = {}
        self._deadline = time.monotonic() + limits.start
        self._collect() if index == 0 else self._report()
        now = time.monotonic()
        self._places = dict.fromkeys(range(count), 0)
        self._moved = now  # the time when a place last changed
        self._heard = dict.fromkeys(self._lines, now)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def leave(self, reason: str = "") -> None:
        """Announces that this process ends. With a reason, the other processes end as well."""
        if not self._left.is_set():
            self._left.set()
            self._say(left=reason)
            self._thread.join()
            for line in self._lines.values():
                line.finish()
            end = time.monotonic() + _LINGER_S
            for line in self._lines.values():
                line.wait_for_end(max(end - time.monotonic(), 0.0))
                line.close()

    def _collect(self) -> None:
        """On process 0: waits for the others, and sends the list of hosts to each."""
        with _listen(self.address) as server:
            while len(self.hosts) < self.count:
                server.settimeout(max(self._deadline - time.monotonic(), 0.01))
                try:
                    line = _Line(server.accept()[0])
                except TimeoutError:
                    break
                self._welcome(line)
        missing = sorted(set(range(self.count)) - set(self.hosts))
        if missing:
            reason = (
                f"not all of {self.count} processes have started within {self.limits.start:g} s:"
                f" no sign of {', '.join(map(str, missing))}; started:"
                f" {', '.join(map(self._who, sorted(self.hosts)))}"
            )
            self._say(end=reason)
            raise Missing(reason)
        self._say(hosts=list(self.hosts.items()))

    def _welcome(self, line: "_Line") -> None:
        hello: dict[str, Any] = next(iter(line.wait(5.0) or []), {})
        index, count = hello.get("process", 0), hello.get("of")
        if count != self.count or index not in range(1, self.count) or index in self.hosts:
            there = ", ".join(map(self._who, sorted(self.hosts)))
            line.say(
                end=f"process {index} of {count} joined a run of {self.count} processes that has"
                f" {there}"
            )
            line.close()
            return
        self.hosts[index], self._lines[index] = str(hello.get("host"))[:255], line

    def _report(self) -> None:
        """On other processes: connects to process 0, and waits until all have started."""
        line = None
        while line is None:
            try:
                host, _, port = self.address.rpartition(":")
                line = _Line(socket.create_connection((host.strip("[]"), int(port)), timeout=5.0))
            except OSError as e:  # not started, or its name is not in DNS yet
                if time.monotonic() > self._deadline:
                    raise Missing(
                        f"process 0 has not started within {self.limits.start:g} s: {self.address}"
                        f" does not answer ({e})"
                    ) from e
                time.sleep(0.2)
        line.say(process=self.index, of=self.count, host=self.hosts[self.index])
        replies = line.wait(max(self._deadline - time.monotonic(), 0.0) + GRACE_S)
        reply = (
            replies[0]
            if replies
            else {"end": f"process 0 at {self.address} has started, but is not ready"}
        )
        if "hosts" not in reply:
            raise Missing(str(reply.get("end")))
        self.hosts = {int(i): host for i, host in reply["hosts"]}
        self._lines[0] = line

    def _watch(self) -> None:
        beat = min(_BEAT_S, self.limits.silent / 4, self.limits.absent / 4)
        with selectors.DefaultSelector() as selector:
            for i, line in self._lines.items():
                selector.register(line.socket, selectors.EVENT_READ, i)
            next_beat = time.monotonic()
            while not self._left.is_set() and self._lines:
                for key, _ in selector.select(min(max(next_beat - time.monotonic(), 0.0), 0.2)):
                    if not self._hear(key.data):
                        selector.unregister(self._lines.pop(key.data).socket)
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + beat
                    self._say(place=self.place)
                    self._judge()

    def _hear(self, i: int) -> bool:
        """Handles new messages of process i. Returns whether to keep listening to it."""
        messages = self._lines[i].wait(0.0)
        self._heard[i] = time.monotonic()
        for message in messages or []:
            if "left" in message:
                self._lines[i].finish()  # it waits for this before it closes the connection
            self._moved_to(i, message.get("place", self._places[i]))
            if message.get("left"):
                self._over(f"{self._who(i)} has ended: {message['left']}", GRACE_S)
            elif "left" in message:
                return False
            elif "end" in message:
                self._over(message["end"], message.get("grace", 0.0))
        if messages is None and not self._left.is_set():
            self._over(f"{self._who(i)} is gone")
        return messages is not None

    def _moved_to(self, i: int, place: int) -> None:
        if place != self._places[i]:
            self._places[i], self._moved = place, time.monotonic()

    def _judge(self) -> None:
        """Ends the run if a process is silent, or keeps the others waiting."""
        now = time.monotonic()
        self._moved_to(self.index, self.place)
        silent = [i for i in self._lines if now - self._heard[i] > self.limits.silent]
        if silent:
            self._over(
                f"{', '.join(map(self._who, silent))} gave no sign of life for"
                f" {self.limits.silent:g} s"
            )
        furthest = max(self._places.values())
        absent = [
            i
            for i, place in self._places.items()
            if place < furthest and (i in self._lines or i == self.index)
        ]
        if self.index == 0 and absent and now - self._moved > self.limits.absent:
            names = ", ".join(map(self._who, absent))
            self._over(
                f"{names} did not reach barrier {furthest} of the run, where the others have"
                f" waited for {self.limits.absent:g} s"
            )

    def _over(self, reason: str, grace_s: float = 0.0) -> None:
        if self.index == 0:
            self._say(end=reason, grace=grace_s)
        self._left.wait(grace_s)
        if not self._left.is_set():
            self._left.set()
            self.end(reason)

    def _say(self, **message: object) -> None:
        for line in list(self._lines.values()):
            line.say(**message)

    def _who(self, i: int) -> str:
        return f"process {i} ({self.hosts[i]})"


class _Line:
    """A connection on which each line is a JSON object."""

    def __init__(self, connection: socket.socket):
        self.socket, self._rest, self._lock = connection, b"", threading.Lock()
        connection.settimeout(5.0)

    def say(self, **message: object) -> None:
        """Sends a message. Ignores a closed connection, which the listening thread notices."""
        try:
            with self._lock:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def wait(self, seconds: float) -> list[dict[str, Any]] | None:
        """Returns the messages received within `seconds`.

        The list is empty after `seconds` without a message. The result is None if the connection
        is closed or the data is invalid.
        """
        end, messages = time.monotonic() + seconds, []
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            while not messages:
                if not selector.select(max(end - time.monotonic(), 0.0)):
                    return []
                try:
                    data = self.socket.recv(65536)
                    *lines, self._rest = (self._rest + data).split(b"\n")
                    messages = [dict(json.loads(text)) for text in lines]
                except (OSError, ValueError, TypeError):
                    return None
                if not data or len(self._rest) > 2**20:
                    return None
        return messages

    def finish(self) -> None:
        """Ends this side: the other side reads what was sent before, and then the end."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def wait_for_end(self, seconds: float) -> None:
        """Reads until the other side ends.

        Closing a connection with unread data resets it, and drops what is not sent yet: the
        reason for which this process ends.
        """
        end = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            while True:
                self.socket.settimeout(max(end - time.monotonic(), 0.01))
                if not self.socket.recv(65536):
                    return

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()


def _listen(address: str) -> socket.socket:
    """A server at the address's port on all interfaces. JAX listens there afterwards."""
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", f":{address.rpartition(':')[2]}")
    host, _, port = bind.rpartition(":")
    both = socket.has_dualstack_ipv6()
    try:
        family = socket.AF_INET6 if both and (not host or ":" in host) else socket.AF_INET
        return socket.create_server(
            (host.strip("[]"), int(port)),
            family=family,
            dualstack_ipv6=both and not host,
            backlog=1024,
        )
    except OSError as e:
        raise Missing(f"process 0 cannot listen at {bind}: {e}; does another run use it?") from e


_current: Peers | None = None


def join(address: str, index: int, count: int, limits: Limits) -> None:
    """Waits for the other processes of this run, and watches them until this process ends.

    Raises:
        Missing: as `Peers`.
    """
    global _current
    _current = Peers(address, index, count, limits)
    atexit.register(_current.leave)  # runs before JAX's handler, which waits for all processes


def met() -> None:
    """Records that this process has reached a barrier of all processes."""
    if _current:
        _current.place += 1


def joined() -> bool:
    """Whether this is one of several processes."""
    return _current is not None


def leave_at_once(code: int) -> None:
    """Ends the process, unless it is one of several, which have to exit together.

    Unlike a normal exit of Python, this does not wait for programs that are still being compiled.
    """
    if _current is None:
        _exit(code)


def stop(code: int, reason: str) -> NoReturn:
    """Ends the process with an exit code.

    One of several processes ends immediately, and sends `reason` to the others.
    """
    if _current is None:
        sys.exit(code)
    _current.leave(reason[:500])
    _exit(code)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    run_lock.release_all()
    os._exit(code)


def wait_for_news() -> None:
    """Waits a moment after a failure, in case another process's end has caused it.

    If so, the message of that process arrives while waiting, and ends this one.
    """
    if _current:
        time.sleep(PATIENCE_S)
