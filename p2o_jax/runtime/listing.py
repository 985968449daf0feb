"""Long lists of problems, cut to their first lines."""

from collections.abc import Sequence


def shortened(lines: Sequence[str], most: int, where: str = "", what: str = "") -> list[str]:
    """The first `most` lines, and "WHERE... and N more WHAT" if there are N others."""
    hidden = len(lines) - most
    rest = " ".join(filter(None, (f"{where}... and {hidden} more", what)))
    return [*lines[:most], *([rest] if hidden > 0 else [])]
