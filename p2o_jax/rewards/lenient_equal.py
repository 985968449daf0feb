r"""Lenient equality of two answers, modelled on the Qwen2.5-Math suite.

- What `grade.math_equal` accepts is equal.
- Case, units and `\text` are ignored.
- Numbers may differ by a relative error of 1e-4, or by a factor of 100.
- If the reference is a letter A to E, the last such letter of the answer counts.
- Tuples and intervals are compared entry by entry, with any brackets.
- Entries and sides are also compared by `grade.math_equal`.

Runs in worker processes only, like `grade`.
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
    """Returns "correct" or "wrong"."""
    if math_equal(prediction, reference) == "correct":
        return "correct"
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
    """The answer without units, text next to a value, degrees, percent and currency signs."""
    answer = _DEGREES.sub("", normalize.normalize(_AND.sub(",", answer)))
    answer = normalize.normalize(_TEXT.sub("", answer) or answer)
    return answer.replace("\\%", "").replace("%", "").strip()


def _number(text: str) -> float | None:
    value = normalize.number(_THOUSANDS.sub("", text))
    return None if value is None else float(value)


def _entries(text: str) -> list[str]:
    """The entries of a tuple or an interval; empty for anything else."""
    grouped = _GROUPED.fullmatch(text)
    if not grouped:
        return []
    entries, depth = [""], 0
    for character in grouped.group(2):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if depth < 0:
            return []  # the outer brackets do not match each other: (a)+(b)
        if character == "," and depth == 0:
            entries.append("")
        else:
            entries[-1] += character
    return [e.strip() for e in entries] if len(entries) > 1 else []


def _cells(text: str) -> list[str]:
    """The cells of a matrix, row by row, with ";" after each row; empty for anything else."""
    matrix = _MATRIX.fullmatch(text)
    return (
        [cell.strip() for row in matrix.group(1).split("\\\\") for cell in (*row.split("&"), ";")]
        if matrix
        else []
    )
