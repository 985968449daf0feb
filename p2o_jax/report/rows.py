"""Rows of a run's JSONL files, as many as a page can hold, and texts cut to what can be read."""

import json
import math
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

MAX_CHARS = 20_000  # of a prompt, template or response


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of the file's whole lines; a last one without its end is still being written, or was torn off by a kill."""
    if path.exists():
        with open(path, "rb") as f:
            for number, line in enumerate(f, start=1):
                if line.endswith(b"\n"):
                    yield number, line


def read(path: Path, needs: Collection[str], notes: list[str]) -> Iterator[dict[str, Any]]:
    """The file's rows; what is no row, or lacks one of the fields that it needs, is told in `notes`."""
    for number, line in lines(path):
        if (row := parsed(line)) is None or not row.keys() >= set(needs):
            notes.append(f"{path.name}:{number}: no row of a run; left out")
        else:
            yield row


def parsed(line: bytes) -> dict[str, Any] | None:
    """The row of a line; None if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file (yet), or none in it, which is told in `notes`."""
    if not path.exists():
        return {}
    if (values := parsed(path.read_bytes())) is None:
        notes.append(f"{path.name}: cannot be read; left out")
    return values or {}


def is_drawn(key: str, share: float) -> bool:
    """Whether a key is among a share of all, drawn by its hash: what is drawn at a smaller share is drawn at a larger one, too."""
    return zlib.crc32(key.encode("utf-8", "replace")) < share * 2**32


def clip(text: Any, limit: int = MAX_CHARS) -> str:
    """The text, without its middle where it is longer than `limit` characters, which is told in it."""
    text = text if isinstance(text, str) else json.dumps(text)
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def number(value: Any, digits: int = 5) -> float | None:
    """A number to so many significant digits; None for what is none, or not finite, which JSON cannot hold."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) else rounded
