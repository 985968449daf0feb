"""Limits for a page: samples of rows, clipped texts and rounded numbers."""

import json
import zlib
from typing import Any

from p2o_jax.tracking.record_rows import LARGEST

MAX_CHARS = 20_000  # in a prompt, template or response


def is_drawn(key: str, share: float) -> bool:
    """Whether a key belongs to a sample of all keys, drawn by hash.

    A key that is drawn with a smaller `share` is also drawn with a larger one.
    """
    return zlib.crc32(key.encode("utf-8", "replace")) < share * 2**32


def clip(text: Any, limit: int = MAX_CHARS) -> str:
    """The text. If it has more than `limit` characters, a note replaces its middle."""
    text = text if isinstance(text, str) else json.dumps(text)
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def number(value: Any, digits: int = 5) -> float | None:
    """The number rounded to `digits` significant digits; None if it is not a finite number."""
    if not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) else rounded
