r"""Lenient equality of two answers, in the manner of the Qwen2.5-Math suite. Runs in worker
processes only, as `grade` does.

Case, units and texts do not matter; a number may be off by 1e-4 of itself or by a factor of a
hundred; a letter A to E is looked for in whatever was answered; tuples and intervals are compared
entry by entry, whatever their brackets; the rest is `grade.math_equal`.
"""

import math
import re

from p2o_jax.rewards import normalize
from p2o_jax.rewards.grade import math_equal

RELATIVE_TOLERANCE = 1e-4
_CHOICE = re.compile(r"(?<![A-Za-z])[A-E](?![A-Za-z])")
_AND = re.compile(r"\\text\s*\{\s*(?:or|and)\s*\}")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?[0-9]\}?)?")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})")
_MATRIX = re.compile(r"\\begin\{[pbv]?matrix\}(.*)\\end\{[pbv]?matrix\}", re.DOTALL)
_GROUPED = re.compile(r"([\[(])(.*)([\])])", re.DOTALL)
_ASSIGNED = re.compile(r"[A-Za-z]{1,2}\s*=\s*")


def equal(prediction: str, reference: str) -> str:
    """ "correct" or "wrong"."""
    return "correct" if _equal(_strip(prediction), _strip(reference)) else "wrong"


def _equal(a: str, b: str) -> bool:
    if a.lower() == b.lower():
        return bool(a)
    if re.fullmatch(r"\(?[A-E]\)?", b):
        letters = _CHOICE.findall(a)
        return bool(letters) and letters[-1] == b.strip("()")
    x, y = _number(a), _number(b)
    if x is not None and y is not None:
        return any(math.isclose(x, z, rel_tol=RELATIVE_TOLERANCE) for z in (y, y / 100, y * 100))
    for parts in (_entries, _cells):
        ours, theirs = parts(a), parts(b)
        if ours and theirs:
            return len(ours) == len(theirs) and all(
                _equal(p, q) for p, q in zip(ours, theirs, strict=True)
            )
    a, b = (
        _ASSIGNED.sub("", text) if text.count("=") == 1 and _ASSIGNED.match(text) else text
        for text in (a, b)
    )
    return a.lower() == b.lower() or math_equal(a, b) == "correct"


def _strip(answer: str) -> str:
    """The answer without units, texts that stand beside something, degrees, signs of percent and
    of money.
    """
    answer = _DEGREES.sub("", normalize.tidy(_AND.sub(",", answer)))
    return (
        normalize.tidy(_TEXT.sub("", answer) or answer).replace("\\%", "").replace("%", "").strip()
    )


def _number(text: str) -> float | None:
    value = normalize.number(_THOUSANDS.sub("", text))
    return None if value is None else float(value)


def _entries(text: str) -> list[str]:
    """The entries of a tuple or an interval; none if it is neither."""
    grouped = _GROUPED.fullmatch(text)
    if not grouped:
        return []
    entries, depth = [""], 0
    for character in grouped.group(2):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if depth < 0:
            return []  # the brackets are not each other's: (a)+(b)
        if character == "," and depth == 0:
            entries.append("")
        else:
            entries[-1] += character
    return [e.strip() for e in entries] if len(entries) > 1 else []


def _cells(text: str) -> list[str]:
    """The rows of a matrix, and in them its cells, one after the other; none if it is no matrix."""
    matrix = _MATRIX.fullmatch(text)
    return (
        [cell.strip() for row in matrix.group(1).split("\\\\") for cell in (*row.split("&"), ";")]
        if matrix
        else []
    )
