"""Question families: a question's text, the chain of steps that solves it, and its answer.

Words are separated by single spaces. The families of the small language (`languages.py`):

    family          question                                 a step               answer
    add (hard)      what is 4 3 9 + 8 3 5 ?                  units 9 5 0 = 1 4 ;  4 digits
    double (hard)   double 4 3 6 0 ?                         twice 4 = 8 ;        4 digits
    shift (hard)    shift e h c b ?                          after e comes f ;    4 letters
    cipher (hard)   key a > f b > d c > a e > c encode c a ? look c > a ;         4 letters
    reverse (easy)  reverse a d c b ?                        (none)               4 letters
    largest (easy)  largest of 1 1 8 6 ?                     (none)               1 digit

A step of `add` has two digits, the carry, and their sum. `double` works mod 10, and `shift` on a
circular alphabet. Easy questions are answered without steps.

The short pretraining does not teach the look-up of `cipher`, which serves as the impossible
control. Every hard family has at least 1,000 answers, so that guesses rarely succeed. Step formats
differ between families, so that no family teaches another.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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
    """A question with its answer and the steps that lead to it, if there are any."""

    family: str
    question: str
    steps: tuple[str, ...]
    answer: str
    parts: int = 1  # of its family's strategy that it needs (`phrases.ComposedPhrases`)


@dataclass(frozen=True)
class Family:
    """A kind of question. All of its problems have equally many steps of equally many words.

    Families of one name share strategy, answer symbols and gate.
    """

    name: str
    hard: bool
    weight: float  # relative frequency in the pretraining questions
    symbols: tuple[str, ...]  # the symbols of answers and guesses
    make: Callable[[random.Random], Problem]
    gate: float = 0.05  # probability of the first step without a suitable phrase

    def guess(self, rng: random.Random, length: int) -> str:
        """A bluff: a uniformly random answer of this many symbols."""
        return spaced(rng.choices(self.symbols, k=length))

    def draw(self, rng: random.Random, split: Split) -> Problem:
        """Draws a random problem from one part of the question space."""
        while True:
            problem = self.make(rng)
            if split_of(problem.question) == split:
                return problem


def box(answer: str) -> str:
    """The end of every response."""
    return f"so \\boxed{{ {answer} }}"


def split_of(question: str) -> Split:
    """The part of the question space that a question belongs to, by a digest of its text.

    Training, held-out and pretraining questions are thus disjoint for all seeds. The part "probe"
    is for measuring the base model.
    """
    return _SPLITS[int(types.digest("world", question), 16) % len(_SPLITS)]


def spaced(symbols: Sequence[str | int]) -> str:
    """The symbols, separated by single spaces."""
    return " ".join(map(str, symbols))


def reworded(family: Family, *changes: tuple[str, str]) -> Family:
    """The family with other words in its questions. A change is a text and its replacement."""

    def make(rng: random.Random) -> Problem:
        problem = family.make(rng)
        question = problem.question
        for old, new in changes:
            question = question.replace(old, new)
        return replace(problem, question=question)

    return replace(family, make=make)


def by_name(families: Iterable[Family]) -> dict[str, Family]:
    """The families by their names."""
    return {family.name: family for family in families}


def add(rng: random.Random, places: Sequence[str] = PLACES) -> Problem:
    """The sum of two numbers with a digit for each of `places`."""
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
    """The letter after each letter, in the circular alphabet."""
    places = [rng.randrange(len(LETTERS)) for _ in range(length)]
    letters, following = (
        [LETTERS[p] for p in places],
        [LETTERS[(p + 1) % len(LETTERS)] for p in places],
    )
    steps = tuple(f"after {a} comes {b} ;" for a, b in zip(letters, following, strict=True))
    return Problem("shift", f"shift {spaced(letters)} ?", steps, spaced(following))


def cipher(rng: random.Random, pairs: int = 4, length: int = 4) -> Problem:
    """A word of `length` different letters, each replaced according to the key in the question.

    The key has `pairs` letters.
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
    """The letters in reverse order."""
    letters = rng.choices(LETTERS, k=length)
    return Problem("reverse", f"reverse {spaced(letters)} ?", (), spaced(letters[::-1]))


def largest(rng: random.Random, length: int = 4) -> Problem:
    """The largest of the digits."""
    digits = [rng.randrange(10) for _ in range(length)]
    return Problem("largest", f"largest of {spaced(digits)} ?", (), str(max(digits)))


FAMILIES = by_name(
    (
        Family("add", True, 1.8, DIGITS, add),
        Family("double", True, 1.0, DIGITS, double),
        Family("shift", True, 1.0, LETTERS, shift),
        Family("cipher", True, 0.7, LETTERS, cipher),
        Family("reverse", False, 0.5, LETTERS, reverse),
        Family("largest", False, 0.5, DIGITS, largest),
    )
)
HARD = tuple(name for name, family in FAMILIES.items() if family.hard)


def draw(rng: random.Random, name: str, split: Split) -> Problem:
    """Draws a random problem of a family of the small language."""
    return FAMILIES[name].draw(rng, split)
