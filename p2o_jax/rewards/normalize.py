r"""Answers as text and as plain numbers: what can be judged at once, without a computer algebra
system.
"""

import re
from fractions import Fraction

_EDITS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"(?<!\\)\\!", ""),
        (
            r"(?<=[0-9])(?:\\,|\{,\})(?=[0-9]{3}(?![0-9]))",
            "",
        ),  # 10\,000; what a bare comma means is for math-verify to say
        (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"(?<!\\)\\[,;: ]|~", " "),
        (r"\\?\$", ""),
        (
            r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])",
            "",
        ),  # "1 2" is not 12 and "\pi r" not "\pir"; elsewhere spaces say nothing
        (r"\s+", " "),
    )
)
_WORDS = re.compile(r"\\(?:text|textbf|mathrm)\{([^{}]*)\}")
_NUMBER = re.compile(
    r"([+-]?)(?:(?P<decimal>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)|\\frac\{([0-9]+)\}\{([0-9]+)\}|([0-9]+)/([0-9]+))"
)
_REPEATING = re.compile(r"([+-]?)([0-9]*)\.([0-9]*)\\(?:overline|bar)\{([0-9]+)\}")
_PERCENT = re.compile(r"\\?%$")
_MAX_DIGITS = 300
# ten times math-verify's: nothing that is decided here is decided otherwise there
_TOLERANCE = Fraction(1, 10**5)


def tidy(answer: str) -> str:
    r"""The answer without what does not change its meaning: spacing, `\left`, `\dfrac`, `$`, a
    final full stop, an outer `\text`.
    """
    for pattern, replacement in _EDITS:
        answer = pattern.sub(replacement, answer)
    answer = answer.rstrip(".")
    if words := _WORDS.fullmatch(answer):
        answer = words.group(1).strip()
    return answer


def number(tidied: str) -> Fraction | None:
    r"""The value of an integer, a decimal (`0.\overline{3}` repeats), `a/b` or `\frac{a}{b}` in
    ASCII digits; None for anything else.
    """
    match = _NUMBER.fullmatch(tidied) if len(tidied) <= _MAX_DIGITS else None
    if not match:
        return _repeating(tidied) if len(tidied) <= _MAX_DIGITS else None
    sign, decimal, *parts = match.groups()
    if decimal:
        value = Fraction(decimal if decimal[-1] != "." else decimal[:-1])
    else:
        top, bottom = (int(p) for p in parts if p is not None)
        if bottom == 0:
            return None
        value = Fraction(top, bottom)
    return -value if sign == "-" else value


def _repeating(tidied: str) -> Fraction | None:
    match = _REPEATING.fullmatch(tidied)
    if not match:
        return None
    sign, whole, before, period = match.groups()
    value = int(whole or "0") + Fraction(
        int(before or "0") + Fraction(int(period), 10 ** len(period) - 1), 10 ** len(before)
    )
    return -value if sign == "-" else value


def equal(a: str, b: str) -> bool | None:
    """Whether two answers are equal, or None if that is not plain to see: the same text, or two
    plain numbers.

    Where only one of two numbers has a percent sign, it may stand for hundredths or be a mere unit:
    50 % is .5, and 50.
    """
    a, b = tidy(a), tidy(b)
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
