"""Mathematical equality of two answers by math-verify. Runs in worker processes only: it may
take for ever, or die.
"""

import functools
import logging
from typing import Any

from math_verify import parse, verify
from math_verify.parser import LatexExtractionConfig

# LaTeX only: math-verify's plain-expression parser ends in SymPy's `parse_expr`, which evaluates
# Python.
_LATEX = (LatexExtractionConfig(boxed_match_priority=0),)

# it warns that its own time-outs are off; ours is the process's end
logging.getLogger("math_verify").setLevel(logging.ERROR)


def math_equal(box: str, answer: str) -> str:
    """ "correct", "wrong", or "error" when the reference answer cannot be read at all."""
    gold = _reference(answer)
    if not gold:
        return "error"
    # SIGALRM, which math-verify's own time-outs use, interrupts neither big integers nor regular
    # expressions.
    return "correct" if verify(gold, _read(box), timeout_seconds=None) else "wrong"


def _read(content: str) -> list[Any]:
    return parse(rf"\boxed{{{content}}}", _LATEX, parsing_timeout=None)  # pyright: ignore[reportArgumentType]


_reference = functools.lru_cache(maxsize=1024)(_read)
