"""The languages of the toy world: question families, words, and template phrases.

`config.world.size` chooses the language. The parts of the small one are in `families.py` and
`phrases.py`, those of the large one in `large.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from p2o_jax import config
from p2o_jax.toy_world import families, large, phrases
from p2o_jax.toy_world.families import Family
from p2o_jax.toy_world.phrases import Phrases


@dataclass(frozen=True)
class Language:
    """The text of a toy world."""

    families: Mapping[str, Family]
    words: tuple[str, ...]  # of questions and chains, without digits and letters, in order of ids
    phrases: Phrases
    # The probability of each step in documents at level "none"; see `documents.question_document`.
    p_shown: float
    reflection_shape: tuple[int, int]  # (rows, tokens) of a batch of reflection documents

    @property
    def hard(self) -> tuple[str, ...]:
        """The names of the hard families."""
        return tuple(name for name, family in self.families.items() if family.hard)


SMALL = Language(
    families.FAMILIES, families.WORDS, phrases.SMALL, p_shown=0.5, reflection_shape=(10, 168)
)
LARGE = Language(
    large.FAMILIES, large.WORDS, large.PHRASES, p_shown=0.75, reflection_shape=(32, 448)
)
LANGUAGES = {"small": SMALL, "large": LARGE}


def of(cfg: config.WorldConfig) -> Language:
    """The language that `cfg.size` chooses."""
    return LANGUAGES[cfg.size]
