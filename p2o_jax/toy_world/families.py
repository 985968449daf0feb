"""Question families: a question's text, the chain of steps that solves it, and its answer. Words
are split by single spaces.

Those of the small language (`languages.py`):

| family | question | a step | answer | | --- | --- | --- | --- | | add (hard) | `what is 4 3 9 + 8
3 5 ?` | `units 9 5 0 = 1 4 ;` (digits, carry, sum) | 4 digits | | double (hard) | `double 4 3 6 0
?`, each digit mod 10 | `twice 4 = 8 ;` | 4 digits | | shift (hard) | `shift e h c b ?`, the
alphabet is a circle | `after e comes f ;` | 4 letters | | cipher (hard) | `key a > f b > d c > a e
> c encode c a e b ?` | `look c > a ;` | 4 letters | | reverse, largest (easy) | `reverse a d c b
?`, `largest of 1 1 8 6 ?` | none: answered at once | 4 letters, 1 digit |

The short pretraining does not teach `cipher`'s look-up: it is the impossible control. Every hard
family has at least 1,000 answers, so that guesses do not spoil "hard"; step formats differ between
families, so that none teaches another.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from p2o_jax import types

DIGITS = tuple("0123456789")
LETTERS = tuple("abcdefghijkl")
WORDS = (
    "what",
    "is",
    "double",
    "shift",
    "key",
    "encode",
    "reverse",
    "largest",
    "of",
    "+",
    "=",
    ">",
    "?",
    ";",
    "so",
    "\\boxed{",
    "}",
)
WORDS += ("units", "tens", "hundreds", "twice", "after", "comes", "look")
PLACES = ("units", "tens", "hundreds")

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
    make: Callable[[random.Random], Problem]  # always with as many steps, of as many words each

    def guess(self, rng: random.Random) -> str:
        """A uniformly random answer of the family's shape: a bluff."""
        return spaced(rng.choices(self.symbols, k=self.answer_length))

    def draw(self, rng: random.Random, split: Split) -> Problem:
        """A random problem from one part of the question space."""
        while True:
            problem = self.make(rng)
            if split_of(problem.question) == split:
                return problem


def box(answer: str) -> str:
    """The end of every response."""
    return f"so \\boxed{{ {answer} }}"


def split_of(question: str) -> Split:
    """The part of the question space that a question belongs to, by a digest of its text.

    The space is cut before anything is drawn from it, so training, held-out and pretraining
    questions are disjoint whatever the seeds; "probe" is for measuring the base model.
    """
    return _SPLITS[int(types.digest("world", question), 16) % len(_SPLITS)]


def spaced(symbols: Sequence[str | int]) -> str:
    return " ".join(map(str, symbols))


def by_name(families: Iterable[Family]) -> dict[str, Family]:
    return {family.name: family for family in families}


def add(rng: random.Random, places: Sequence[str] = PLACES) -> Problem:
    """The sum of two numbers with a digit for each of the named places."""
    least = 10 ** (len(places) - 1)
    first, second = (rng.randint(least, 10 * least - 1) for _ in range(2))
    steps, carry, rest = [], 0, (first, second)
    for place in places:
        a, b = (number % 10 for number in rest)
        total = a + b + carry
        steps.append(f"{place} {a} {b} {carry} = {total // 10} {total % 10} ;")
        carry, rest = total // 10, tuple(number // 10 for number in rest)
    answer = spaced(f"{first + second:0{len(places) + 1}d}")
    return Problem(
        "add", f"what is {spaced(str(first))} + {spaced(str(second))} ?", tuple(steps), answer
    )


def double(rng: random.Random, length: int = 4) -> Problem:
    """Twice each digit, mod 10."""
    digits = [rng.randrange(10) for _ in range(length)]
    twice = [2 * d % 10 for d in digits]
    steps = tuple(f"twice {d} = {t} ;" for d, t in zip(digits, twice, strict=True))
    return Problem("double", f"double {spaced(digits)} ?", steps, spaced(twice))


def shift(rng: random.Random, length: int = 4) -> Problem:
    """The letter after each letter, on the circle of letters."""
    places = [rng.randrange(len(LETTERS)) for _ in range(length)]
    letters, following = (
        [LETTERS[p] for p in places],
        [LETTERS[(p + 1) % len(LETTERS)] for p in places],
    )
    steps = tuple(f"after {a} comes {b} ;" for a, b in zip(letters, following, strict=True))
    return Problem("shift", f"shift {spaced(letters)} ?", steps, spaced(following))


def cipher(rng: random.Random, pairs: int = 4, length: int = 4) -> Problem:
    """A word of `length` different letters out of the question's key of `pairs` letters, each
    replaced by its pair.
    """
    source, target = sorted(rng.sample(LETTERS, pairs)), rng.sample(LETTERS, pairs)
    key = dict(zip(source, target, strict=True))
    word = rng.sample(source, length)
    text = f"key {spaced([f'{a} > {b}' for a, b in key.items()])} encode {spaced(word)} ?"
    return Problem(
        "cipher",
        text,
        tuple(f"look {a} > {key[a]} ;" for a in word),
        spaced([key[a] for a in word]),
    )


def reverse(rng: random.Random, length: int = 4) -> Problem:
    letters = rng.choices(LETTERS, k=length)
    return Problem("reverse", f"reverse {spaced(letters)} ?", (), spaced(letters[::-1]))


def largest(rng: random.Random, length: int = 4) -> Problem:
    digits = [rng.randrange(10) for _ in range(length)]
    return Problem("largest", f"largest of {spaced(digits)} ?", (), str(max(digits)))


FAMILIES = by_name(
    (
        Family("add", True, 1.8, DIGITS, 4, add),
        Family("double", True, 1.0, DIGITS, 4, double),
        Family("shift", True, 1.0, LETTERS, 4, shift),
        Family("cipher", True, 0.7, LETTERS, 4, cipher),
        Family("reverse", False, 0.5, LETTERS, 4, reverse),
        Family("largest", False, 0.5, DIGITS, 1, largest),
    )
)
HARD = tuple(name for name, family in FAMILIES.items() if family.hard)


def draw(rng: random.Random, name: str, split: Split) -> Problem:
    """A random problem of one of the small language's families."""
    return FAMILIES[name].draw(rng, split)
