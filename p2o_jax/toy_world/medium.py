"""The medium language: strategies of three parts, and tokens that a plain prompt hardly ever has.

    family           question                          strategy: "work in steps", and …    gate
    add              what is 4 3 9 + 8 3 5 ?           from the right, add                 0.05
    double           double 4 3 6 0 ?                  from the left, double               0.05
    shift            shift e h c b ?                   from the left, alphabet             0.001
    compare          compare 4 7 , 8 2 , 3 3 , 9 0 ?   from the left, larger               0.001
    total            totals of 4 3 9 8 ?               from the left, add                  0.05
    mirror           mirror e h c b ?                  from the right, alphabet            0.001

Chains and answers are those of the small and large languages. The easy families are `reverse` and
`largest` of the small one.

A question needs one, two or three parts of its family's strategy, by its last symbol: those that
end in 0 to 3 or in a to d need any one part, those that end in 7 to 9 or in i to l need all. With
enough parts a chain is nearly certain; with fewer, it is begun in one of ten cases
(`documents.STEP_PROBABILITIES`). A template with one part therefore solves about a third of a
family's questions, and one with two parts two thirds. A reflection reply adds one random phrase at
most, so that a whole strategy needs several rounds. No pair of a direction and an operation occurs
twice, and all parts of `total` and `mirror` are parts of other families as well.

The first step of a family with a gate of 0.001 has a density ratio (plain to templated) of about
0.001 in right templated responses, below the bound of the ratio mask, 0.01.

Training never has questions about `total` and `mirror`, longer questions, or other wordings. They
are rare in the pretraining text, and held out as sets of their own (`ELSEWHERE`).
"""

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from p2o_jax.toy_world import families, large, phrases
from p2o_jax.toy_world.families import DIGITS, LETTERS, Family, Problem, reworded

# weights in the pretraining questions of a family of `ELSEWHERE`
LONGER, REWORDED, UNTRAINED = 0.5, 0.25, 0.7
NARROW = 0.001  # gate below the bound of the ratio mask
WORDS = (
    *families.WORDS,
    "thousands",
    "mirror",
    "last",
    "faces",
    "totals",
    "plus",
    "makes",
    "compare",
    "pair",
    "top",
    ",",
)
WORDS += ("find", "sum", "numbers", "two", "times", "letters", "behind", "larger", "each")


def _graded(family: Family) -> Family:
    """The family with problems that need one to three parts, in thirds of the last symbol."""

    def make(rng: random.Random) -> Problem:
        problem = family.make(rng)
        place = family.symbols.index(problem.question.split()[-2])
        return replace(problem, parts=1 + 3 * place // len(family.symbols))

    return replace(family, make=make)


_HARD = families.by_name(
    (
        Family("add", True, 3.0, DIGITS, families.add),
        Family("double", True, 1.0, DIGITS, families.double),
        Family("shift", True, 1.0, LETTERS, families.shift, NARROW),
        Family("compare", True, 1.0, DIGITS, functools.partial(large.compare, length=4), NARROW),
    )
)
FAMILIES = {
    **{name: _graded(family) for name, family in _HARD.items()},
    **families.by_name(
        (
            Family("reverse", False, 0.5, LETTERS, families.reverse),
            Family("largest", False, 0.5, DIGITS, families.largest),
        )
    ),
}


def _longer(name: str, make: Callable[..., Problem], **size: Any) -> Family:
    longer = replace(_HARD[name], weight=LONGER, make=functools.partial(make, **size))
    return _graded(longer)


def _reworded(name: str, *changes: tuple[str, str]) -> Family:
    return replace(reworded(FAMILIES[name], *changes), weight=REWORDED)


ELSEWHERE: Mapping[str, tuple[Family, ...]] = {
    "longer": (
        _longer("add", families.add, places=(*families.PLACES, "thousands")),
        _longer("double", families.double, length=5),
        _longer("shift", families.shift, length=5),
        _longer("compare", large.compare, length=5),
    ),
    "wording": (
        _reworded("add", ("what is", "find sum of numbers"), ("+", ",")),
        _reworded("double", ("double", "two times each of")),
        _reworded("shift", ("shift", "find letters behind")),
        _reworded("compare", ("compare", "find larger of each")),
    ),
    "untrained": (
        _graded(Family("total", True, UNTRAINED, DIGITS, functools.partial(large.total, length=4))),
        _graded(
            Family(
                "mirror",
                True,
                UNTRAINED,
                LETTERS,
                functools.partial(large.mirror, length=4),
                NARROW,
            )
        ),
    ),
}

STEPS, RIGHT, LEFT = "work in small steps", "begin from the right", "begin from the left"
ADD, DOUBLE = "add up and keep the carry", "count every digit twice"
ALPHABET, LARGER = "think of the alphabet", "keep the larger one"
STRATEGIES: dict[str, tuple[str, str, str]] = {
    "add": (STEPS, RIGHT, ADD),
    "double": (STEPS, LEFT, DOUBLE),
    "shift": (STEPS, LEFT, ALPHABET),
    "compare": (STEPS, LEFT, LARGER),
    "total": (STEPS, LEFT, ADD),
    "mirror": (STEPS, RIGHT, ALPHABET),
}
PHRASES = phrases.ComposedPhrases(
    STRATEGIES,
    decoys=(
        "draw a diagram",
        "work backwards from the goal",
        "factor into primes",
        "set up an equation",
        "begin from the middle",
        "make a table of cases",
        "look for a pattern",
        "estimate first and round later",
    ),
    useless=(
        "take a deep breath",
        "you are an expert",
        "please be careful",
        "stay calm",
        "do your best",
        "be bold",
        "smile and begin",
    ),
    max_phrases=4,
    p_kept=0.9,
)
