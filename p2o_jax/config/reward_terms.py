"""The rewards that `config.reward.fn` lists, with their names and weights."""

import math
import os
import re
from typing import NamedTuple

CORRECT, FORMAT = "correct", "format"
BUILT_IN = (CORRECT, FORMAT)
_FUNCTION = re.compile(r"(?:[A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*")


class RewardTerm(NamedTuple):
    """One of the rewards of a run. Its name, in metrics, is the function's or the built-in word."""

    name: str
    function: str  # CORRECT, FORMAT, FILE.py:function or package.module:function
    weight: float

    @property
    def is_custom(self) -> bool:
        """Whether a function that the user named computes it."""
        return self.function not in BUILT_IN


def reward_terms(fn: str) -> tuple[RewardTerm, ...]:
    """The rewards in a `config.reward.fn` that `problems` accepts; CORRECT alone if it is empty."""
    return tuple(_term(entry) for entry in fn.split(",")) if fn else (_term(CORRECT),)


def custom_functions(fn: str) -> tuple[str, ...]:
    """The functions in a `config.reward.fn` that the user named."""
    return tuple(term.function for term in reward_terms(fn) if term.is_custom)


def compares_answers(fn: str) -> bool:
    """Whether responses are compared with reference answers."""
    return any(term.function == CORRECT for term in reward_terms(fn))


def absolute(fn: str) -> str:
    """The same list with absolute paths, so that the run's record names the same files anywhere."""
    return ",".join(map(_absolute, fn.split(",")))


def problems(fn: str) -> list[str]:
    """A line for everything wrong with a `config.reward.fn`."""
    lines = []
    names: set[str] = set()
    for entry in fn.split(",") if fn else ():
        term = _term(entry)
        if term.function not in BUILT_IN and not _FUNCTION.fullmatch(term.function):
            lines.append(
                f"config.reward.fn={entry}: expected FILE.py:function, package.module:function,"
                f" {' or '.join(BUILT_IN)}"
            )
        elif not 0 < term.weight < math.inf:
            lines.append(f"config.reward.fn={entry}: the weight must be a number above 0")
        elif term.name in names:
            lines.append(f"config.reward.fn={fn}: two rewards are named {term.name}")
        names.add(term.name)
    return lines


def notices(fn: str, success_above: float) -> list[str]:
    """A line where `config.reward.success_above` does not separate right from wrong answers."""
    terms = reward_terms(fn)
    correct = sum(term.weight for term in terms if term.function == CORRECT)
    share = correct / sum(term.weight for term in terms)
    rule = f"config.reward.fn={fn}: give {CORRECT} more weight, or change"
    setting = f"{rule} config.reward.success_above={success_above}"
    if correct and share <= success_above:
        return [f"{setting}: a right answer alone scores {share:.2f}, which is no success"]
    if correct and 1 - share > success_above:
        return [f"{setting}: a wrong answer can score {1 - share:.2f}, which is a success"]
    return []


def _term(entry: str) -> RewardTerm:
    function, weight = _split(entry)
    return RewardTerm(function.rpartition(":")[2], function, float(weight or 1))


def _split(entry: str) -> tuple[str, str]:
    """The function and the weight of an entry; an empty weight if it has none."""
    function, _, weight = entry.strip().rpartition("=")
    try:
        float(weight)
    except ValueError:
        return entry.strip(), ""
    return (function.strip(), weight.strip()) if function else (entry.strip(), "")


def _absolute(entry: str) -> str:
    function, weight = _split(entry)
    path, _, name = function.rpartition(":")
    if path.endswith(".py"):
        function = f"{os.path.abspath(os.path.expanduser(path))}:{name}"
    return f"{function}={weight}" if weight else function
