r"""Reference answers: their text, and the final answer of a solution.

GSM8K's answers are solutions that end in `#### 72`, MATH's are solutions with a `\boxed{}`. A
response is compared with the final answer alone.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from p2o_jax.rewards.boxed import last_boxed

MAX_DIGITS = 300  # before or after the decimal point
HASHES, BOX = "after ####", r"in the last \boxed{}"
_HASHES = re.compile(r"(?:^|\n)[ \t]*####[ \t]*([^\n]*\S)\s*$")
_THOUSANDS = re.compile(r"[^0-9]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s$.{]+)")
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class ExactFloat(float):
    """A number of a JSON file that keeps the digits it was written with."""

    text: str

    def __new__(cls, text: str) -> "ExactFloat":
        number = super().__new__(cls, text)
        number.text = str(text)
        return number


def as_text(value: Any) -> str:
    """The text of a value in an answer column.

    A number is its exact decimal digits without an exponent, a list is its entries joined by
    commas, a list of chat messages is the text of the last one, and a boolean is True or False.

    Raises:
        ValueError: the rule that the value breaks.
    """
    if value is None or value != value:  # tables store missing values as NaN
        raise ValueError("missing")
    if isinstance(value, str):
        check_text(value)
        return value.strip()
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float | Decimal):
        return _decimal(value)
    if not isinstance(value, Sequence):
        raise ValueError(f"expected a text, a number or a list of them, got {_kind(value)}")
    if value and isinstance(value[-1], Mapping) and "content" in value[-1]:
        return as_text(value[-1]["content"])
    if any(not isinstance(entry, str | bool | int | float | Decimal) for entry in value):
        raise ValueError("expected a list of texts and numbers, got a list of other values")
    if not value:
        raise ValueError("empty")
    return ", ".join(map(as_text, value))


def check_text(text: str) -> None:
    """Raises a ValueError with the rule that a text breaks.

    JSON can encode unpaired surrogates, which are invalid.
    """
    if not text.strip():
        raise ValueError("empty")
    if _HALF_PAIR.search(text):
        raise ValueError("half a surrogate pair: no valid Unicode")


def as_reference(value: Any, form: str) -> tuple[str, str]:
    """The reference answer in a value, and where it stood as in `final_answer`.

    `form` is config.data.answers. Raises a ValueError as `as_text`.
    """
    text = as_text(value)
    return (text, "") if form == "raw" else final_answer(text)


def final_answer(text: str) -> tuple[str, str]:
    r"""The final answer of a solution, and where it stood: HASHES, BOX, or "" if text is none."""
    if (answer := after_hashes(text)) != text:
        return answer, HASHES
    answer = boxed_answer(text)
    return (text, "") if answer is None else (answer, BOX)


def after_hashes(text: str) -> str:
    """GSM8K's answer: the line after the last ####, a number without thousands separators.

    Other texts are returned unchanged.
    """
    match = _HASHES.search(text)
    if not match:
        return text
    answer = match.group(1)
    return answer.replace(",", "") if _THOUSANDS.fullmatch(answer) else answer


def boxed_answer(solution: str) -> str | None:
    r"""The content of a solution's last box; None without one. MATH also has \fbox{3}, \boxed 3."""
    solution = solution.replace("\\fbox", "\\boxed")
    bare = _BARE_BOX.findall(solution)
    return last_boxed(solution) or (bare[-1] if bare else None)


def _decimal(value: float | Decimal) -> str:
    number = Decimal(value.text if isinstance(value, ExactFloat) else str(value))
    if not number.is_finite():
        raise ValueError(f"expected a finite number, got {value}")
    if abs(number.adjusted()) > MAX_DIGITS:
        raise ValueError(f"a number of more than {MAX_DIGITS} digits")
    return f"{number:f}"


def _kind(value: Any) -> str:
    return "an object" if isinstance(value, Mapping) else type(value).__name__
