r"""Compares answers as text and as plain numbers, without a computer algebra system."""

import re
from fractions import Fraction

_EDITS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"(?<!\\)\\!", ""),
        # 10\,000; a bare comma is left to math-verify
        (r"(?<=[0-9])(?:\\,|\{,\})(?=[0-9]{3}(?![0-9]))", ""),
        (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"(?<!\\)\\[,;: ]|~", " "),
        (r"\\?\$", ""),
        # "1 2" is not 12 and "\pi r" is not "\pir"; other spaces have no meaning
        (r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", ""),
        (r"\s+", " "),
    )
)
_WORDS = re.compile(r"\\(?:text|textbf|mathrm)\{([^{}]*)\}")
_NUMBER = re.compile(
    r"([+-]?)(?:(?P<decimal>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    r"|\\frac\{([0-9]+)\}\{([0-9]+)\}|([0-9]+)/([0-9]+))"
)
_REPEATING = re.compile(r"([+-]?)([0-9]*)\.([0-9]*)\\(?:overline|bar)\{([0-9]+)\}")
_PERCENT = re.compile(r"\\?%$")
_MAX_DIGITS = 300
# Ten times the tolerance of math-verify, so that the two never disagree.
_TOLERANCE = Fraction(1, 10**5)


def normalize(answer: str) -> str:
    r"""Removes everything that does not change an answer's meaning.

    That is spacing, `\left`, `\dfrac`, `$`, a final full stop, and an outer `\text`.
    """
    for pattern, replacement in _EDITS:
        answer = pattern.sub(replacement, answer)
    answer = answer.rstrip(".")
    if words := _WORDS.fullmatch(answer):
        answer = words.group(1).strip()
    return answer


def number(normalized: str) -> Fraction | None:
    r"""The value of a plain number, or None for anything else.

    Plain numbers are integers, decimals, `0.\overline{3}`, `a/b` and `\frac{a}{b}` in ASCII digits.
    """
    match = _NUMBER.fullmatch(normalized) if len(normalized) <= _MAX_DIGITS else None
    if not match:
        return _repeating(normalized) if len(normalized) <= _MAX_DIGITS else None
    sign, decimal, *parts = match.groups()
    if decimal:
        value = Fraction(decimal if decimal[-1] != "." else decimal[:-1])
    else:
        top, bottom = (int(p) for p in parts if p is not None)
        if bottom == 0:
            return None
        value = Fraction(top, bottom)
    return -value if sign == "-" else value


def _repeating(normalized: str) -> Fraction | None:
    match = _REPEATING.fullmatch(normalized)
    if not match:
        return None
    sign, whole, before, period = match.groups()
    value = int(whole or "0") + Fraction(
        int(before or "0") + Fraction(int(period), 10 ** len(period) - 1), 10 ** len(before)
    )
    return -value if sign == "-" else value


def equal(a: str, b: str) -> bool | None:
    """Whether two answers are equal; None if neither their texts nor plain numbers decide it.

    If only one of two numbers has a percent sign, the sign may mean hundredths or be a mere unit:
    50 % equals both 0.5 and 50.
    """
    a, b = normalize(a), normalize(b)
    if a == b:
        return bool(a)
    x, y = (number(_PERCENT.sub("", text)) for text in (a, b))
    if x is None or y is None:
        return None
    if x == y:
        return True
    in_percent = [bool(_PERCENT.search(text)) for text in (a, b)]
    if any(in_percent):
        hundredths = (x / 100, y) if in_percent[0] else (x, y / 100)
        return in_percent[0] != in_percent[1] and hundredths[0] == hundredths[1]
    integers = x.denominator == y.denominator == 1
    return False if integers or abs(x - y) > _TOLERANCE else None
