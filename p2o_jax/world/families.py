"""Question families: a question's text, the chain of steps that solves it, and its answer. Words are split by single spaces.

| family | question | a step | answer |
| --- | --- | --- | --- |
| add (hard) | `what is 4 3 9 + 8 3 5 ?` | `units 9 5 0 = 1 4 ;` (digits, carry, sum) | 4 digits |
| double (hard) | `double 4 3 6 0 ?`, each digit mod 10 | `twice 4 = 8 ;` | 4 digits |
| shift (hard) | `shift e h c b ?`, the alphabet is a circle | `after e comes f ;` | 4 letters |
| cipher (hard) | `key a > f b > d c > a e > c encode c a e b ?` | `look c > a ;` | 4 letters |
| reverse, largest (easy) | `reverse a d c b ?`, `largest of 1 1 8 6 ?` | none: answered at once | 4 letters, 1 digit |

The short pretraining does not teach `cipher`'s look-up: it is the impossible control. Every hard family has at least 1,000 answers,
so that guesses do not spoil "hard"; step formats differ between families, so that none teaches another.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from p2o_jax import records

DIGITS = tuple("0123456789")
LETTERS = tuple("abcdefghijkl")
WORDS = ("what", "is", "double", "shift", "key", "encode", "reverse", "largest", "of", "+", "=", ">", "?", ";", "so", "\\boxed{", "}")
WORDS += ("units", "tens", "hundreds", "twice", "after", "comes", "look")

Split = Literal["pretrain", "train", "heldout", "probe"]
_SPLITS: tuple[Split, ...] = ("heldout", "train", "train", "probe") + ("pretrain",) * 12


@dataclass(frozen=True)
class Problem:
    """A question with the steps that lead to its answer (none: it is answered at once)."""

    family: str
    question: str
    steps: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Family:
    name: str
    hard: bool
    weight: float  # share of the pretraining questions
    symbols: tuple[str, ...]  # an answer's symbols, of which guesses are made
    answer_length: int
    make: Callable[[random.Random], Problem]


def box(answer: str) -> str:
    """The end of every response."""
    return f"so \\boxed{{ {answer} }}"


def guess(rng: random.Random, family: str) -> str:
    """A uniformly random answer of the family's shape: a bluff."""
    shape = FAMILIES[family]
    return " ".join(rng.choices(shape.symbols, k=shape.answer_length))


def split_of(question: str) -> Split:
    """The part of the question space that a question belongs to, by a digest of its text.

    The space is cut before anything is drawn from it, so training, held-out and pretraining questions are disjoint whatever
    the seeds; "probe" is for measuring the base model.
    """
    return _SPLITS[int(records.digest("world", question), 16) % len(_SPLITS)]


def draw(rng: random.Random, family: str, split: Split) -> Problem:
    """A random problem of the family from one part of its question space."""
    while True:
        problem = FAMILIES[family].make(rng)
        if split_of(problem.question) == split:
            return problem


def _spaced(symbols: Sequence[str | int]) -> str:
    return " ".join(map(str, symbols))


def _add(rng: random.Random) -> Problem:
    first, second = (rng.randint(100, 999) for _ in range(2))
    steps, carry, rest = [], 0, (first, second)
    for place in ("units", "tens", "hundreds"):
        a, b = (number % 10 for number in rest)
        total = a + b + carry
        steps.append(f"{place} {a} {b} {carry} = {total // 10} {total % 10} ;")
        carry, rest = total // 10, tuple(number // 10 for number in rest)
    return Problem("add", f"what is {_spaced(str(first))} + {_spaced(str(second))} ?", tuple(steps), _spaced(f"{first + second:04d}"))


def _double(rng: random.Random) -> Problem:
    digits = [rng.randrange(10) for _ in range(4)]
    twice = [2 * d % 10 for d in digits]
    steps = tuple(f"twice {d} = {t} ;" for d, t in zip(digits, twice, strict=True))
    return Problem("double", f"double {_spaced(digits)} ?", steps, _spaced(twice))


def _shift(rng: random.Random) -> Problem:
    places = [rng.randrange(len(LETTERS)) for _ in range(4)]
    letters, following = [LETTERS[p] for p in places], [LETTERS[(p + 1) % len(LETTERS)] for p in places]
    steps = tuple(f"after {a} comes {b} ;" for a, b in zip(letters, following, strict=True))
    return Problem("shift", f"shift {_spaced(letters)} ?", steps, _spaced(following))


def _cipher(rng: random.Random) -> Problem:
    source, target = sorted(rng.sample(LETTERS, 4)), rng.sample(LETTERS, 4)
    key = dict(zip(source, target, strict=True))
    word = rng.sample(source, 4)
    text = f"key {_spaced([f'{a} > {b}' for a, b in key.items()])} encode {_spaced(word)} ?"
    return Problem("cipher", text, tuple(f"look {a} > {key[a]} ;" for a in word), _spaced([key[a] for a in word]))


def _reverse(rng: random.Random) -> Problem:
    letters = rng.choices(LETTERS, k=4)
    return Problem("reverse", f"reverse {_spaced(letters)} ?", (), _spaced(letters[::-1]))


def _largest(rng: random.Random) -> Problem:
    digits = [rng.randrange(10) for _ in range(4)]
    return Problem("largest", f"largest of {_spaced(digits)} ?", (), str(max(digits)))


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("add", True, 1.8, DIGITS, 4, _add),
        Family("double", True, 1.0, DIGITS, 4, _double),
        Family("shift", True, 1.0, LETTERS, 4, _shift),
        Family("cipher", True, 0.7, LETTERS, 4, _cipher),
        Family("reverse", False, 0.5, LETTERS, 4, _reverse),
        Family("largest", False, 0.5, DIGITS, 1, _largest),
    )
}
HARD = tuple(name for name, family in FAMILIES.items() if family.hard)
EASY = tuple(name for name, family in FAMILIES.items() if not family.hard)
