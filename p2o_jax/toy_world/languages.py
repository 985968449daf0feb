"""A world's language as a value: question families, the words of their text, and the phrases of
templates.

`config.world.size` chooses it. The small one's parts are in `families.py` and `phrases.py`, the
large one's in `large.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from p2o_jax import config
from p2o_jax.toy_world import families, large, phrases
from p2o_jax.toy_world.families import Family
from p2o_jax.toy_world.phrases import Phrases


@dataclass(frozen=True)
class Language:
    families: Mapping[str, Family]
    # of questions and chains besides digits and letters, in the order of their ids
    words: tuple[str, ...]
    phrases: Phrases
    # with which documents at level "none" take each step, so that late ones are seen
    # (`documents.question_document`)
    p_shown: float
    # (rows, tokens) of a batch of reflection documents, the longest of which fits
    reflection_shape: tuple[int, int]

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
    """The language that the settings choose."""
    return LANGUAGES[cfg.size]
