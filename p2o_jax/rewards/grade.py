"""Decides with math-verify whether two answers are mathematically equal.

Runs in worker processes only, because it may hang or crash.
"""

import functools
import logging
from typing import Any

from math_verify import parse, verify
from math_verify.parser import LatexExtractionConfig

# LaTeX only: math-verify's plain-expression parser ends in SymPy's `parse_expr`, which evaluates
# Python.
_LATEX = (LatexExtractionConfig(boxed_match_priority=0),)

# It warns that its own timeouts are disabled. The pool's deadline replaces them.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def math_equal(box: str, answer: str) -> str:
    """Returns "correct", "wrong", or "error" if the reference answer cannot be parsed."""
    gold = _reference(answer)
    if not gold:
        return "error"
    # math-verify's timeouts use SIGALRM, which interrupts neither operations on big integers nor
    # regular expressions.
    return "correct" if verify(gold, _read(box), timeout_seconds=None) else "wrong"


def _read(content: str) -> list[Any]:
    boxed = rf"\boxed{{{content}}}"
    return parse(boxed, _LATEX, parsing_timeout=None)  # pyright: ignore[reportArgumentType]


_reference = functools.lru_cache(maxsize=1024)(_read)
