r"""Normalizes answers, and compares them as text and as plain numbers, without a computer algebra
system.

`canonical` is the form in which answers are recognized: in votes, and in prompt templates.
"""

import re
from fractions import Fraction

from p2o_jax.rewards import characters, numbers

_EDITS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|[bB]ig[lrm]?|[bB]igg[lrm]?)(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"\\(?:displaystyle|textstyle|limits)(?![A-Za-z])", ""),
        (r"(?<=[0-9]),\\!\s*(?=[0-9]{3}(?![0-9]))|(?<!\\)\\!", ""),
        # 10\,000; a bare comma is part of the number only where `numbers` reads it so
        (r"(?<=[0-9])(?:\\,|\{,\})(?=[0-9]{3}(?![0-9]))", ""),
        (r"\\(l|g|n)eq(?:q|slant)?(?![A-Za-z])", r"\\\1e"),
        (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\?\$", ""),
        # "1 2" is not 12, "\pi r" is not "\pir", "1, 234" is not 1,234; other spaces mean nothing
        (r"(?<![A-Za-z0-9,])\s+|\s+(?![A-Za-z0-9])|(?<=,)\s+(?![0-9]{3}(?![0-9]))", ""),
        (r"\s+", " "),
    )
)
_WRAPPERS = (
    re.compile(
        r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit"
        r"|mbox|boldsymbol|boxed|fbox)"
        r" ?\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}"
    ),
    re.compile(r"\\[(\[](.*)\\[)\]]", re.DOTALL),
    re.compile(r"\*\*(.*)\*\*", re.DOTALL),
    re.compile(r"\{([^{}]*)\}"),
)
_PERCENT = re.compile(r"\\?%$")


def normalize(answer: str) -> str:
    r"""Removes everything that does not change an answer's meaning.

    That is spacing, `\left`, `\dfrac`, `$`, a final full stop, and an outer `\text`, `\boxed` or
    pair of braces. Unicode characters become the LaTeX that they stand for.
    """
    answer = characters.to_latex(answer)
    for pattern, replacement in _EDITS:
        answer = pattern.sub(replacement, answer)
    while True:
        answer = answer.rstrip(".").strip()
        inner = next((m for w in _WRAPPERS if (m := w.fullmatch(answer))), None)
        if inner is None:
            return answer
        answer = inner.group(1)


def number(normalized: str) -> Fraction | None:
    """The value of a plain number (see `numbers`), or None for anything else."""
    plain = numbers.read(normalized)
    return plain.value if plain else None


def canonical(answer: str) -> str:
    r"""The same text for answers that are plainly the same.

    A plain number becomes an integer or a fraction in lowest terms: `1,234`, `$1234.0$` and
    `\boxed{\text{1234}}` are "1234"; `0.5` and `\dfrac{1}{2}` are "1/2". Anything else is
    normalized.
    """
    text = normalize(answer)
    value = number(text)
    return text if value is None else str(value)


def equal(a: str, b: str) -> bool | None:
    """Whether two answers are equal; None if neither their texts nor plain numbers decide it.

    If only one of two numbers has a percent sign, the sign may mean hundredths or be a mere unit:
    50 % equals both 0.5 and 50.
    """
    a, b = normalize(a), normalize(b)
    if a.replace(", ", ",") == b.replace(", ", ","):
        return bool(a)
    x, y = (numbers.read(_PERCENT.sub("", text)) for text in (a, b))
    if x is None or y is None:
        return None
    in_percent = [bool(_PERCENT.search(text)) for text in (a, b)]
    if any(in_percent) and x.value != y.value:
        hundredths = (x.value / 100, y.value) if in_percent[0] else (x.value, y.value / 100)
        return in_percent[0] != in_percent[1] and hundredths[0] == hundredths[1]
    return numbers.equal(x, y)
