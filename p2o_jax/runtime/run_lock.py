"""A lock file that names the process using a folder, so that no second process uses it.

The file is created complete, with a hard link: if several processes start at the same time, on one
host or on several, exactly one succeeds. While the process lives it also holds the kernel's lock on
the file (flock), which the kernel releases when the process ends in any way. The lock of a killed
process is thus recognized on the same host, even if its process id is in use again. The state of a
process on another host is unknown, so its lock is never taken over. Two hosts are the same if they
have the same kernel (regardless of container names) or, after a reboot, the same name.
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
_WRITING_S = 1.0  # longest time to write a lock where hard links are not supported
_PAUSE_S = 0.05
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)

_held: list["Lock"] = []


class LockHeld(Exception):
    """Another process uses the folder, or this cannot be ruled out. The message says what to do."""


class Lock:
    """This process's lock on a folder, which is created if it does not exist.

    Raises:
        LockHeld: another process holds the lock.
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
        """Removes the file, and the folders created for it if they are empty."""
        if self not in _held:
            return
        _held.remove(self)
        with contextlib.suppress(OSError):  # the file may have been deleted
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
    """Releases all locks of this process. For use before an exit without clean-up."""
    for lock in list(_held):
        lock.release()


def _acquire(path: Path) -> int:
    """Creates or takes over the file at `path`, and returns its descriptor."""
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
    """Links `own` to `path`, and returns the descriptor of `path`. Raises FileExistsError."""
    try:
        os.link(own, path)
        return descriptor
    except OSError as e:
        if e.errno not in _NO_LINKS:
            raise
    created = _written(path)  # briefly incomplete, which `_read` handles
    os.close(descriptor)
    return created


def _written(path: Path) -> int:
    """Creates a file that names this process, locked by flock, and returns its descriptor."""
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
    """Replaces a lock whose process has ended by `own`. Returns False if the caller should retry.

    Raises:
        LockHeld: its process has not ended, or its state is unknown.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        holder = _read(descriptor)
        if holder is None:
            raise LockHeld(
                f"{path} cannot be read. Once you are certain that no run uses this folder,"
                " delete it"
            )
        who = (
            f"process {holder['pid']} on {holder['host']} has been at work in {path.parent} since"
            f" {holder['started']}"
        )
        here = holder["host"] == socket.gethostname() or holder["boot"] == _boot() != ""
        free = _flock(descriptor) if here else None
        if free is False:
            time.sleep(_PAUSE_S)  # another process may be taking it over right now
            if _is_at(descriptor, path):
                raise LockHeld(f"{who}: wait until it has ended, or use another folder")
            return False
        if free is None:
            unknown = f"whether it still runs cannot be determined on {socket.gethostname()}"
            raise LockHeld(
                f"{who}; {unknown}. Once you are certain that it has ended, delete {path}"
            )
        if not _is_at(descriptor, path):
            return False
        # No other process can do this now, because we hold the kernel's lock on the old file.
        own.replace(path)
        return True
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> dict[str, Any] | None:
    """The process named in a lock; None if the lock stays unreadable for _WRITING_S seconds."""
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
    """The id of the running kernel, the same in all its containers; empty if it has none."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _flock(descriptor: int) -> bool | None:
    """Tries to lock the file. Returns None if the file system does not support locks."""
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
