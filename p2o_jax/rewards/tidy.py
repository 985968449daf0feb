r"""Answers as text and as plain numbers: what can be judged at once, without a computer algebra system."""

import re
from fractions import Fraction

_EDITS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        (r"\\!", ""),
        (r"\\[,;: ]|~", " "),
        (r"\\?\$", ""),
        (r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", ""),  # "1 2" is not 12 and "\pi r" not "\pir"; elsewhere spaces say nothing
        (r"\s+", " "),
    )
)
_WORDS = re.compile(r"\\(?:text|textbf|mathrm)\{([^{}]*)\}")
_NUMBER = re.compile(r"([+-]?)(?:(?P<decimal>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)|\\frac\{([0-9]+)\}\{([0-9]+)\}|([0-9]+)/([0-9]+))")
_MAX_DIGITS = 300
_TOLERANCE = Fraction(1, 10**5)  # ten times math-verify's: nothing that is decided here is decided otherwise there


def tidy(answer: str) -> str:
    r"""The answer without what does not change its meaning: spacing, `\left`, `\dfrac`, `$`, a final full stop, an outer `\text`."""
    for pattern, replacement in _EDITS:
        answer = pattern.sub(replacement, answer)
    answer = answer.rstrip(".")
    if words := _WORDS.fullmatch(answer):
        answer = words.group(1).strip()
    return answer


def number(tidied: str) -> Fraction | None:
    r"""The value of an integer, a decimal, `a/b` or `\frac{a}{b}` in ASCII digits; None for anything else."""
    match = _NUMBER.fullmatch(tidied) if len(tidied) <= _MAX_DIGITS else None
    if not match:
        return None
    sign, decimal, *parts = match.groups()
    if decimal:
        value = Fraction(decimal if decimal[-1] != "." else decimal[:-1])
    else:
        top, bottom = (int(p) for p in parts if p is not None)
        if bottom == 0:
            return None
        value = Fraction(top, bottom)
    return -value if sign == "-" else value


def equal(a: str, b: str) -> bool | None:
    """Whether two answers are equal, or None if that is not plain to see: the same text, or two plain numbers."""
    a, b = tidy(a), tidy(b)
    if a == b:
        return bool(a)
    x, y = number(a), number(b)
    if x is None or y is None:
        return None
    if x == y:
        return True
    integers = x.denominator == y.denominator == 1
    return False if integers or abs(x - y) > _TOLERANCE else None
