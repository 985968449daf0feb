r"""Reads plain numbers exactly, and compares them.

Plain numbers are integers, decimals, `0.\overline{3}`, `a/b`, `\frac{a}{b}`, mixed numbers,
`4.5e33`, `4.5\times10^{33}` and `10^{33}`, in ASCII digits and after `normalize.normalize`.
"""

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 300
MAX_EXPONENT = 1000  # of ten; larger powers take too long to compute

_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SCIENTIFIC = re.compile(
    rf"(?P<mantissa>{_DECIMAL})(?:[eE](?P<e>[+-]?[0-9]+))?"
    rf"|(?:(?P<factor>{_DECIMAL}) ?(?:\\times|\\cdot|\*) ?)?"
    r"10(?:\^|\*\*)(?:\{(?P<braced>[+-]?[0-9]+)\}|(?P<bare>[+-]?[0-9]+))"
)
_RATIO = re.compile(
    r"(?:(?P<whole>[0-9]+)(?: (?=[0-9])|(?=\\frac\{[0-9])))?"
    r"(?:\\frac\{(?P<above>-?[0-9]+)\}\{(?P<below>-?[0-9]+)\}|(?P<top>[0-9]+)/(?P<bottom>[0-9]+))"
)
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\(?:overline|bar)\{([0-9]+)\}")
_SIGN = re.compile(r"([+-]?) ?")


class Number(NamedTuple):
    """An exact number, and the precision that it is written with."""

    value: Fraction
    unit: Fraction | None = None  # place of the last digit of a decimal; None: written exactly
    digits: int = 0  # significant ones of a decimal


def read(normalized: str) -> Number | None:
    """The number that a normalized answer is, or None if it is anything else."""
    if len(normalized) > MAX_CHARS:
        return None
    sign = _SIGN.match(normalized)
    assert sign
    text = normalized[sign.end() :]
    number = None
    if match := _SCIENTIFIC.fullmatch(text):
        number = _scientific(match)
    elif match := _RATIO.fullmatch(text):
        number = _ratio(match)
    elif match := _REPEATING.fullmatch(text):
        whole, before, period = match.groups()
        nines = 10 ** len(period) - 1
        fraction = (int(before or "0") + Fraction(int(period), nines)) / 10 ** len(before)
        number = Number(int(whole or "0") + fraction)
    return number._replace(value=-number.value) if number and sign.group(1) == "-" else number


def _scientific(match: re.Match[str]) -> Number | None:
    mantissa = (match["mantissa"] or match["factor"] or "1").replace(",", "")
    exponent = int(match["e"] or match["braced"] or match["bare"] or "0")
    if abs(exponent) > MAX_EXPONENT:
        return None
    scale = Fraction(10) ** exponent
    whole, _, decimals = mantissa.partition(".")
    value = Fraction(int((whole + decimals) or "0"), 10 ** len(decimals)) * scale
    if not decimals:
        return Number(value)
    return Number(value, scale / 10 ** len(decimals), len((whole + decimals).lstrip("0")))


def _ratio(match: re.Match[str]) -> Number | None:
    whole = match["whole"]
    top, bottom = int(match["above"] or match["top"]), int(match["below"] or match["bottom"])
    if bottom == 0 or (whole and not top < bottom):  # 2\frac{7}{3} may be a product
        return None
    return Number(int(whole or "0") + Fraction(top, bottom))


# A decimal stands for every number that it is the rounding of, if it has at least this many
# significant digits and this many decimal places. Six places are also math-verify's rule.
_MIN_DIGITS, _MAX_UNIT = 6, Fraction(1, 10**6)
# The digits of a floating-point number that a program printed are noise from the 16th on.
_FLOAT_DIGITS, _FLOAT_ERROR = 15, Fraction(1, 10**14)


def equal(a: Number, b: Number) -> bool:
    """Whether two numbers are equal, or one is a decimal that stands for the other.

    0.333333 stands for 1/3, but 0.33 does not, and 0.1234561 does not stand for 0.1234564.
    """
    if a.value == b.value:
        return True
    difference = abs(a.value - b.value)
    written = sorted(
        (n for n in (a, b) if n.unit is not None), key=lambda n: n.unit or 0, reverse=True
    )
    for number in written[:1]:
        assert number.unit
        precise = number.digits >= _MIN_DIGITS and number.unit <= _MAX_UNIT
        if precise and 2 * difference <= number.unit:
            return True
    noisy = [n for n in written if n.digits > _FLOAT_DIGITS and (n.unit or 1) <= _MAX_UNIT]
    return len(noisy) == 1 and difference <= _FLOAT_ERROR * max(abs(a.value), abs(b.value))
