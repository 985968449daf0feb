"""A lock file that names the process at work in a folder, so that no second one starts there.

The file appears whole, by a hard link: of several starts at the same moment one wins, on one host
or on several. As long as its process lives it also holds the kernel's lock on the file (flock),
which ends with the process, however that ends. So a lock that a kill has left is recognized on its
own host, even if its process id is in use again. Nothing is known about a process of another host:
its lock is never taken over. A host is the same if its kernel is, whatever name a container gives
it, or its name, if it was started again.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

NAME = "run.lock"
_WRITING_S = 1.0  # within which a process has written its lock, where hard links are not supported
_PAUSE_S = 0.05
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)

_held: list["Lock"] = []


class LockHeld(Exception):
    """Another process is at work in the folder, or that cannot be ruled out; the message says
    what to do.
    """


class Lock:
    """The lock of this process on a folder, which is created if it does not exist.

    Raises:
        Held: another process holds it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._created = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._descriptor = _acquire(self.path)
        except BaseException:
            self._remove_folders()
            raise
        _held.append(self)

    def release(self) -> None:
        """Removes the file, and the folders that were created for it if they are empty."""
        if self not in _held:
            return
        _held.remove(self)
        with contextlib.suppress(OSError):  # whoever deleted it wanted it released
            if _is_at(self._descriptor, self.path):
                self.path.unlink()
        os.close(self._descriptor)
        self._remove_folders()

    def _remove_folders(self) -> None:
        with contextlib.suppress(OSError):  # not empty: the usual case
            for folder in self._created:
                folder.rmdir()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def release_all() -> None:
    """Releases what this process holds: before it ends itself without clean-up."""
    for lock in list(_held):
        lock.release()


def _acquire(path: Path) -> int:
    """A descriptor of the file at `path`, which was created or taken over by this process."""
    own = path.with_name(f"{NAME}.{secrets.token_hex(4)}")
    descriptor = _written(own)
    try:
        while True:
            try:
                return _create(own, descriptor, path)
            except FileExistsError:
                if _take_over(own, path):
                    return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        own.unlink(missing_ok=True)


def _create(own: Path, descriptor: int, path: Path) -> int:
    """A descriptor of `path`, which is now what `own` is. Raises FileExistsError."""
    try:
        os.link(own, path)
        return descriptor
    except OSError as e:
        if e.errno not in _NO_LINKS:
            raise
    created = _written(path)  # not there whole from its first moment on: see `_read`
    os.close(descriptor)
    return created


def _written(path: Path) -> int:
    """A descriptor of a new file that holds what names this process, with the kernel's lock on it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _flock(descriptor)
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "started": now}
        os.write(descriptor, json.dumps(holder).encode())
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        path.unlink()
        raise
    return descriptor


def _take_over(own: Path, path: Path) -> bool:
    """Whether `own` has taken the place of a lock whose process has ended; False: try again.

    Raises:
        Held: its process has not ended, or that is not known.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        holder = _read(descriptor)
        if holder is None:
            raise LockHeld(
                f"{path} cannot be read. Once you are certain that no run is at work here,"
                " delete it"
            )
        who = (
            f"process {holder['pid']} on {holder['host']} has been at work in {path.parent} since"
            f" {holder['started']}"
        )
        here = holder["host"] == socket.gethostname() or holder["boot"] == _boot() != ""
        free = _flock(descriptor) if here else None
        if free is False:
            time.sleep(_PAUSE_S)  # another start may be taking it over at this moment
            if _is_at(descriptor, path):
                raise LockHeld(f"{who}: wait until it has ended, or give another folder")
            return False
        if free is None:
            unknown = f"whether it still runs cannot be determined on {socket.gethostname()}"
            raise LockHeld(
                f"{who}; {unknown}. Once you are certain that it has ended, delete {path}"
            )
        if not _is_at(descriptor, path):
            return False
        # nobody else does this now: we hold the kernel's lock on what it replaces
        own.replace(path)
        return True
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> dict[str, Any] | None:
    """What names the process that wrote the lock; None if it cannot be read, even a little later."""
    end = time.monotonic() + _WRITING_S
    while True:
        try:
            value = json.loads(os.pread(descriptor, 4096, 0))
            return {
                **{key: str(value[key]) for key in ("host", "boot", "started")},
                "pid": int(value["pid"]),
            }
        except (ValueError, KeyError, TypeError):
            if time.monotonic() > end:
                return None
        time.sleep(_PAUSE_S)


def _boot() -> str:
    """Names the running kernel, the same in all its containers; empty where there is no such name."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _flock(descriptor: int) -> bool | None:
    """Whether the kernel's lock on the file is now ours; None: the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
