"""The instruction phrases of templates, and which of them suit which question family.

Only the pretraining text (`documents.py`) uses the link from family to strategy.
"""

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# How well a template suits a question, from best to worst.
Level = Literal["strong", "weak", "generic", "none"]
MAX_PHRASES = 3  # in a template
SEPARATOR = " . "


@dataclass(frozen=True)
class Phrases:
    """The phrases of a language."""

    strategies: Mapping[str, tuple[str, str, str]]  # family: two strong phrases and a weak one
    decoys: tuple[str, ...]  # strategies for tasks that the world does not have
    useless: tuple[str, ...]
    generic: tuple[str, ...]

    @functools.cached_property
    def all(self) -> tuple[str, ...]:
        """All phrases."""
        return (
            tuple(phrase for three in self.strategies.values() for phrase in three)
            + self.decoys
            + self.useless
            + self.generic
        )

    def level(self, family: str, chosen: Sequence[str]) -> Level:
        """How well the best of the chosen phrases suits the family's questions."""
        *strong, weak = self.strategies.get(family, ("",))
        if any(phrase in strong for phrase in chosen):
            return "strong"
        if weak in chosen:
            return "weak"
        return "generic" if any(phrase in self.generic for phrase in chosen) else "none"

    def draw(self, rng: random.Random, count: int) -> tuple[str, ...]:
        """Draws `count` distinct phrases uniformly from all phrases."""
        return tuple(rng.sample(self.all, count))

    def mutate(self, rng: random.Random, chosen: Sequence[str]) -> tuple[str, ...]:
        """Draws the instruction that a reflection reply proposes. It is never empty.

        Each phrase is kept with probability 0.75. With probability 0.85, and always if none was
        kept, a phrase drawn uniformly from all phrases is inserted at a random position. If three
        phrases were kept, it replaces one of them. If it is already among them, nothing changes.
        """
        kept = [phrase for phrase in chosen if rng.random() < 0.75]
        if rng.random() < 0.85 or not kept:
            new = rng.choice(self.all)
            if new not in kept:
                if len(kept) >= MAX_PHRASES:
                    kept.pop(rng.randrange(len(kept)))
                kept.insert(rng.randint(0, len(kept)), new)
        return tuple(kept[:MAX_PHRASES])


def join(chosen: Sequence[str]) -> str:
    """Joins phrases to a template."""
    return SEPARATOR.join(chosen)


STRATEGIES: dict[str, tuple[str, str, str]] = {
    "add": (
        "sum each column from the right and carry",
        "stack both numbers and keep a running carry",
        "go units first then tens then hundreds",
    ),
    "double": (
        "take every digit twice",
        "pair each digit with itself and sum",
        "treat one digit at a time",
    ),
    "shift": (
        "name the letter that follows each one",
        "move one place along the alphabet",
        "recite the alphabet slowly",
    ),
    "cipher": (
        "find every letter in the key",
        "swap letters using the given pairs",
        "consult the key",
    ),
}
DECOYS = (
    "draw a diagram of the problem",
    "work backwards from the goal",
    "factor the expression into primes",
    "set up an equation and solve it",
    "sort the items by size",
    "make a table of cases",
    "look for a repeating pattern",
    "count the vowels in the word",
    "convert the fraction into a decimal",
    "convert hours into minutes",
    "estimate first and round later",
    "balance both sides of the equation",
)
USELESS = (
    "take a deep breath",
    "you are an expert",
    "this matters to my career",
    "please be careful",
    "answer with confidence",
    "stay calm",
    "i believe in you",
    "do your best",
    "be kind and polite",
    "focus now",
    "you will get a reward",
    "trust yourself",
    "use plain words",
    "keep it short",
    "write in a friendly tone",
    "be bold",
    "good luck today",
    "smile and begin",
)
GENERIC = ("think step by step", "show all your work")

SMALL = Phrases(STRATEGIES, DECOYS, USELESS, GENERIC)
level = SMALL.level
