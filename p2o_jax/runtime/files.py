"""Files that are there whole or not at all, whenever the process is killed. What another command
wrote is never replaced.
"""

import errno
import glob
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path`, to be written; at the end it is synced and renamed to `path`.

    If the body raises, `path` stays as it was.
    """
    temporary = unused(path)
    try:
        with open(temporary, "xb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, contents: str | bytes) -> None:
    """Writes the contents to `path`: all of it is on disk, or nothing."""
    with replacing(path) as f:
        f.write(contents.encode() if isinstance(contents, str) else contents)


def write_json(path: Path, values: Any) -> None:
    """`write_whole` of indented JSON."""
    write_whole(path, json.dumps(values, indent=1))


def unused(path: Path) -> Path:
    """A name beside `path` that nothing has: for what is written first and then renamed to
    `path`.
    """
    return path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")


def leftovers(path: Path) -> list[str]:
    """A line for each `unused(path)` that exists: a command was killed while it wrote `path`, or
    is writing it now.
    """
    partial = sorted(path.parent.glob(f"{glob.escape(path.name)}.partial-*"))
    return [
        f"{p}: left by a command that was killed; delete it unless such a command is running"
        for p in partial
    ]


@contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """Deletes the folder, which this process makes, if the body raises."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def conflicts(flag: str, *paths: Path) -> list[str]:
    """A line for each path that a command cannot write its output to: a directory, or a file
    with something in it.
    """
    problems = []
    for path in paths:
        if path.is_dir():
            problems.append(f"{flag}: {path} is a directory")
        elif path.is_file() and path.stat().st_size:
            problems.append(
                f"{flag}: {path} exists and is never overwritten; delete it, or give another name"
            )
    return problems


def create(path: Path) -> TextIO:
    """The file, opened for writing; it is new, empty, or not a regular file (a pipe, a device).

    Raises:
        FileExistsError: there is something in it.
    """
    f = open(path, "a", encoding="utf-8")  # noqa: SIM115  # returned open
    status = os.fstat(f.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size:
        f.close()
        raise FileExistsError(errno.EEXIST, "exists and is never overwritten", str(path))
    return f


def sync_folder(folder: Path) -> None:
    """Has all files in the folder, and their names, on disk."""
    for path in (*sorted(folder.rglob("*")), folder):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
