"""Digests of the files in a folder, to detect missing or changed files.

Object stores (`gs://`) have checksums of their own. There only names and sizes are recorded, so
that a checkpoint does not have to be read back after it was written.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from etils import epath

NAME = "digests.json"
_PIECE_BYTES = 2**22
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def write(folder: epath.Path, parts: Sequence[str]) -> None:
    """Writes size and CRC-32 of every file below the subfolders `parts` to the folder's NAME."""
    names = sorted(name for part in parts for name in _names(folder, part))
    with ThreadPoolExecutor() as pool:
        files = dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))
    text = json.dumps(files)
    (folder / NAME).write_text(json.dumps({"files": files, "crc32": zlib.crc32(text.encode())}))


def damage(folder: epath.Path, part: int = 0, num_parts: int = 1) -> str:
    """A short description of the first missing or changed file; empty if all are intact.

    Args:
        folder: a folder that `write` was called on.
        part: the part of the files to check, from 0.
        num_parts: the number of equal parts that the files are divided into.

    Raises:
        OSError: the store failed, so that the state of the files is unknown.
    """
    try:
        recorded = json.loads((folder / NAME).read_text())
        files: dict[str, list[int]] = recorded["files"]
        if recorded["crc32"] != zlib.crc32(json.dumps(files).encode()):
            return f"{NAME} is not what was written"
    except _GONE:
        return f"{NAME} is missing (checkpoints of earlier versions have none)"
    except (ValueError, KeyError, TypeError):
        return f"{NAME} cannot be read"
    names = sorted(files)[part::num_parts]

    def problem(name: str) -> str:
        try:
            same = _digest(folder / name) == files[name]
        except _GONE:
            return f"{name} is missing"
        return "" if same else f"{name} is not what was written"

    with ThreadPoolExecutor() as pool:
        return next(filter(None, pool.map(problem, names)), "")


def _names(folder: epath.Path, within: str) -> Iterator[str]:
    for path in (folder / within).iterdir():
        name = f"{within}/{path.name}"
        if path.is_dir():
            yield from _names(folder, name)
        else:
            yield name


def _digest(path: epath.Path) -> list[int]:
    """[size in bytes, CRC-32 of the contents], or only [size] in an object store."""
    if "://" in os.fspath(path):
        return [path.stat().length]
    size, crc = 0, 0
    with open(path, "rb") as f:
        while piece := f.read(_PIECE_BYTES):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
    return [size, crc]
