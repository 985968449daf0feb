"""Instruction phrases, of which templates are made, and which of them fit which question family.

The link from family to strategy is known to the pretraining text (`documents.py`) and to nothing else in the system.
"""

import random
from collections.abc import Sequence
from typing import Literal

Level = Literal["strong", "weak", "generic", "none"]  # how well a template fits a question, best first

STRATEGIES: dict[str, tuple[str, str, str]] = {  # family: two strong phrases and a weak one
    "add": (
        "sum each column from the right and carry",
        "stack both numbers and keep a running carry",
        "go units first then tens then hundreds",
    ),
    "double": ("take every digit twice", "pair each digit with itself and sum", "treat one digit at a time"),
    "shift": ("name the letter that follows each one", "move one place along the alphabet", "recite the alphabet slowly"),
    "cipher": ("find every letter in the key", "swap letters using the given pairs", "consult the key"),
}
DECOYS = (  # strategies for tasks that this world does not have
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

ALL: tuple[str, ...] = tuple(phrase for three in STRATEGIES.values() for phrase in three) + DECOYS + USELESS + GENERIC
MAX_PHRASES = 3
SEPARATOR = " . "


def level(family: str, phrases: Sequence[str]) -> Level:
    """How well the phrases fit the family's questions: the best of them counts."""
    *strong, weak = STRATEGIES.get(family, ("",))
    if any(phrase in strong for phrase in phrases):
        return "strong"
    if weak in phrases:
        return "weak"
    return "generic" if any(phrase in GENERIC for phrase in phrases) else "none"


def join(phrases: Sequence[str]) -> str:
    """The phrases as a template."""
    return SEPARATOR.join(phrases)


def draw(rng: random.Random, count: int) -> tuple[str, ...]:
    """`count` distinct phrases, uniformly from all."""
    return tuple(rng.sample(ALL, count))


def mutate(rng: random.Random, phrases: Sequence[str]) -> tuple[str, ...]:
    """The instruction that a reflection reply proposes: each phrase kept with .75, a random one inserted with .85.

    The new phrase is uniform over all phrases and knows nothing of the questions; if it is there already, nothing is
    inserted. Where three were kept, one of them makes room. Never empty: with nothing kept, one is always inserted.
    """
    kept = [phrase for phrase in phrases if rng.random() < 0.75]
    if rng.random() < 0.85 or not kept:
        new = rng.choice(ALL)
        if new not in kept:
            if len(kept) >= MAX_PHRASES:
                kept.pop(rng.randrange(len(kept)))
            kept.insert(rng.randint(0, len(kept)), new)
    return tuple(kept[:MAX_PHRASES])
