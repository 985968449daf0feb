"""The other processes of a run: who is there at the start, who has gone, who does not come to where
the others wait.

Every process is connected with process 0 from its start to its end, over the port of JAX's
coordinator: the kernel closes the connection of a process that dies, however it dies. JAX's own
coordination service finds dead processes, too, but then ends the others in C++, with a number, no
host and no way for Python to say more: it comes second, for what is not seen here.
"""

import atexit
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

GONE = 75  # exit code where another process is the reason: "try again" by sysexits.h
PATIENCE_S = (
    3.0  # an exception may be the echo of another process' end, of which the message is on its way
)
GRACE_S = 10.0  # what has ended another process may end this one by itself, and better told
_BEAT_S = 5.0


class Missing(Exception):
    """Not all processes are there; the message says which."""


class Limits(NamedTuple):
    """Seconds: until all must have come, without a sign of life, and behind where the others wait."""

    start: float
    silent: float
    absent: float


def _end(text: str) -> None:
    shown = "".join(c if c.isprintable() else "?" for c in text)  # what others have sent
    print(
        f"error: {shown}; the same command goes on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    run_lock.release_all()
    os._exit(GONE)


class Peers:
    """Connections between the `count` processes of a run, of which this is number `index`; process
    0 listens at HOST:PORT `address`.

    `end` is called with a line, in a thread of its own, when the run can't go on.

    Raises:
        Missing: not all have come in time, or the port of process 0 is taken.
    """

    def __init__(
        self,
        address: str,
        index: int,
        count: int,
        limits: Limits,
        end: Callable[[str], None] = _end,
    ):
        self.address, self.index, self.count, self.limits, self.end = (
            address,
            index,
            count,
            limits,
            end,
        )
        self.hosts = {index: socket.gethostname()}
        self.place = 0  # how many meetings of all processes this one has come to
        self._lines: dict[int, _Line] = {}
        self._deadline = time.monotonic() + limits.start
        self._collect() if index == 0 else self._report()
        now = time.monotonic()
        # `_moved`: when a place last changed
        self._places, self._moved = (
            dict.fromkeys(range(count), 0),
            now,
        )
        self._heard = dict.fromkeys(self._lines, now)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def leave(self, reason: str = "") -> None:
        """Says to the others that this process ends now, as it should, or for a reason that they
        have to end for, too.
        """
        if not self._left.is_set():
            self._left.set()
            self._say(left=reason)
            self._thread.join()
            for line in self._lines.values():
                line.close()

    def _collect(self) -> None:
        """Process 0: waits for the others and tells each who there is."""
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
            reason = f"not all of {self.count} processes have come within {self.limits.start:g} s: "
            reason += (
                f"no sign of {', '.join(map(str, missing))}; here are"
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
                end=(
                    f"process {index} of {count} came to a run of {self.count} processes that has"
                    f" {there}"
                )
            )
            line.close()
            return
        self.hosts[index], self._lines[index] = str(hello.get("host"))[:255], line

    def _report(self) -> None:
        """The others: tells process 0 of this one, and waits until all are there."""
        line = None
        while line is None:
            try:
                host, _, port = self.address.rpartition(":")
                line = _Line(socket.create_connection((host.strip("[]"), int(port)), timeout=5.0))
            except OSError as e:  # not started yet, or its name is not known yet
                if time.monotonic() > self._deadline:
                    raise Missing(
                        f"process 0 has not come within {self.limits.start:g} s: {self.address}"
                        f" does not answer ({e})"
                    ) from e
                time.sleep(0.2)
        line.say(process=self.index, of=self.count, host=self.hosts[self.index])
        replies = line.wait(max(self._deadline - time.monotonic(), 0.0) + GRACE_S)
        reply = (
            replies[0]
            if replies
            else {"end": f"process 0 at {self.address} is there, but is not ready"}
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
        """Whether to listen to process i any longer, after what it has said now."""
        messages = self._lines[i].wait(0.0)
        self._heard[i] = time.monotonic()
        for message in messages or []:
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
        """Ends the run if a process is silent, or does not come."""
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
                f"{names} did not come to where the others have waited for {self.limits.absent:g} s"
                f" (meeting {furthest} of the run)"
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
        """Sends; to nobody if the other has gone, which whoever listens will notice."""
        try:
            with self._lock:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def wait(self, seconds: float) -> list[dict[str, Any]] | None:
        """What the other says within so many seconds; None if it has gone, or said what is not
        of this kind.
        """
        end, found = time.monotonic() + seconds, []
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            while not found:
                if not selector.select(max(end - time.monotonic(), 0.0)):
                    return []
                try:
                    data = self.socket.recv(65536)
                    *lines, self._rest = (self._rest + data).split(b"\n")
                    found = [dict(json.loads(text)) for text in lines]
                except (OSError, ValueError, TypeError):
                    return None
                if not data or len(self._rest) > 2**20:
                    return None
        return found

    def close(self) -> None:
        self.socket.close()


def _listen(address: str) -> socket.socket:
    """A server at the port of the address, on all of the host's own; JAX listens there afterwards."""
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
        raise Missing(f"process 0 cannot listen at {bind}: {e}; is another run there?") from e


_current: Peers | None = None


def join(address: str, index: int, count: int, limits: Limits) -> None:
    """Waits for the other processes of this one's run, and watches them from now on. Raises
    Missing.
    """
    global _current
    _current = Peers(address, index, count, limits)
    atexit.register(_current.leave)  # before JAX's own end, which waits for all


def met() -> None:
    """Notes that this process comes to where all processes meet."""
    if _current:
        _current.place += 1


def joined() -> bool:
    """Whether this is one of several processes."""
    return _current is not None


def leave_at_once(code: int) -> None:
    """Ends the process, unless it is one of several: those leave together, and JAX waits for all at
    its end.

    Programs that are still being compiled are not waited for, as Python would.
    """
    if _current is None:
        _exit(code)


def stop(code: int, reason: str) -> NoReturn:
    """Ends the process with this exit code; where it is one of several, at once, and the others
    are told the reason.
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
    """To be called where something has failed: that may be another process' end, and then this
    one ends here, by what it hears.
    """
    if _current:
        time.sleep(PATIENCE_S)
