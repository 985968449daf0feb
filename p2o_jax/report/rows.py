"""As many rows as a page can hold, and texts and numbers cut to what can be read."""

import json
import zlib
from typing import Any

from p2o_jax.tracking.record_rows import LARGEST

MAX_CHARS = 20_000  # of a prompt, template or response


def is_drawn(key: str, share: float) -> bool:
    """Whether a key is among a share of all, drawn by its hash: what is drawn at a smaller share
    is drawn at a larger one, too.
    """
    return zlib.crc32(key.encode("utf-8", "replace")) < share * 2**32


def clip(text: Any, limit: int = MAX_CHARS) -> str:
    """The text, without its middle where it is longer than `limit` characters, which is told in it."""
    text = text if isinstance(text, str) else json.dumps(text)
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def number(value: Any, digits: int = 5) -> float | None:
    """A number to so many significant digits; None for what is none, or not finite, which JSON
    cannot hold.
    """
    if not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) else rounded
