"""The instruction phrases of templates, and which of them suit which question family.

Only the pretraining text (`documents.py`) uses the link from family to strategy.
"""

import functools
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# How well a template suits a question. "part" is of `ComposedPhrases` alone.
Level = Literal["strong", "weak", "generic", "part", "none"]
MAX_PHRASES = 3  # in a template of the small and large languages
SEPARATOR = " . "


@dataclass(frozen=True)
class Phrases:
    """The phrases of a language, each of which is a strategy by itself."""

    strategies: Mapping[str, tuple[str, str, str]]  # family: two strong phrases and a weak one
    decoys: tuple[str, ...]  # strategies for tasks that the world does not have
    useless: tuple[str, ...]
    generic: tuple[str, ...] = ()
    max_phrases: int = MAX_PHRASES  # in a template
    p_kept: float = 0.75  # probability that a reflection reply keeps a phrase

    @functools.cached_property
    def all(self) -> tuple[str, ...]:
        """All phrases, each once."""
        strategies = [phrase for several in self.strategies.values() for phrase in several]
        return tuple(dict.fromkeys([*strategies, *self.decoys, *self.useless, *self.generic]))

    def level(self, family: str, chosen: Sequence[str], parts: int = 1) -> Level:
        """How well the best of the chosen phrases suits the family's questions.

        `parts` is of `ComposedPhrases` alone.
        """
        *strong, weak = self.strategies.get(family, ("",))
        if any(phrase in strong for phrase in chosen):
            return "strong"
        if weak in chosen:
            return "weak"
        return "generic" if any(phrase in self.generic for phrase in chosen) else "none"

    def instructions(self, family: str) -> dict[str, list[str]]:
        """Templates that suit a family which has a strategy, by their level."""
        *strong, weak = self.strategies[family]
        return {"strong": strong, "weak": [weak], "generic": list(self.generic)}

    def fitting(self, rng: random.Random, family: str, chosen: Sequence[str]) -> tuple[str, ...]:
        """The chosen phrases, one of them replaced by a suitable one if none is that one."""
        phrases, suitable = list(chosen), rng.choice(self.strategies[family])
        if suitable not in phrases:
            phrases[rng.randrange(len(phrases))] = suitable
        return tuple(phrases)

    def draw(self, rng: random.Random, count: int) -> tuple[str, ...]:
        """Draws `count` distinct phrases uniformly from all phrases."""
        return tuple(rng.sample(self.all, count))

    def mutate(self, rng: random.Random, chosen: Sequence[str]) -> tuple[str, ...]:
        """Draws the instruction that a reflection reply proposes. It is never empty.

        Each phrase is kept with probability `p_kept`. With probability 0.85, and always if none was
        kept, a phrase drawn uniformly from all phrases is inserted at a random position. If
        `max_phrases` were kept, it replaces one of them. If it is already among them, nothing
        changes.
        """
        kept = [phrase for phrase in chosen if rng.random() < self.p_kept]
        if rng.random() < 0.85 or not kept:
            new = rng.choice(self.all)
            if new not in kept:
                if len(kept) >= self.max_phrases:
                    kept.pop(rng.randrange(len(kept)))
                kept.insert(rng.randint(0, len(kept)), new)
        return tuple(kept[: self.max_phrases])


@dataclass(frozen=True)
class ComposedPhrases(Phrases):
    """The phrases of a language whose strategies have three parts, a phrase each.

    Families share parts. A question needs one, two or three parts of its family's strategy, in any
    order.
    """

    def level(self, family: str, chosen: Sequence[str], parts: int = 1) -> Level:
        """ "strong" if at least `parts` parts of the family's strategy are among the chosen
        phrases, "part" if fewer are, "none" if none is.
        """
        number = len({*self.strategies.get(family, ())} & {*chosen})
        return "none" if not number else "strong" if number >= parts else "part"

    def instructions(self, family: str) -> dict[str, list[str]]:
        """Templates that suit a family: all parts ("strong"), every pair ("two"), every part."""
        parts = self.strategies[family]
        return {
            "strong": [join(parts)],
            "two": [join(pair) for pair in itertools.combinations(parts, 2)],
            "one": list(parts),
        }

    def fitting(self, rng: random.Random, family: str, chosen: Sequence[str]) -> tuple[str, ...]:
        """One to three parts of the family's strategy, and chosen phrases up to `max_phrases`, in
        random order.
        """
        parts = rng.sample(self.strategies[family], rng.randint(1, 3))
        others = [phrase for phrase in chosen if phrase not in parts]
        phrases = [*parts, *others[: self.max_phrases - len(parts)]]
        rng.shuffle(phrases)
        return tuple(phrases)


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
