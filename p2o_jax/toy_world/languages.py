"""The languages of the toy world: question families, words, and template phrases.

`config.world.size` chooses the language. The parts of the small one are in `families.py` and
`phrases.py`, those of the others in `medium.py` and `large.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

from p2o_jax import config
from p2o_jax.toy_world import families, large, medium, phrases
from p2o_jax.toy_world.families import Family, reworded
from p2o_jax.toy_world.phrases import Phrases


@dataclass(frozen=True)
class Language:
    """The text of a toy world."""

    families: Mapping[str, Family]  # of training, and of the usual held-out set
    words: tuple[str, ...]  # of questions and chains, without digits and letters, in order of ids
    phrases: Phrases
    # The probability of each step in documents at level "none"; see `documents.question_document`.
    p_shown: float
    reflection_shape: tuple[int, int]  # (rows, tokens) of a batch of reflection documents
    # held-out sets that differ from training in kind, by name
    elsewhere: Mapping[str, tuple[Family, ...]]
    shows_elsewhere: bool = False  # whether pretraining has questions as in these sets

    @property
    def hard(self) -> tuple[str, ...]:
        """The names of the hard families."""
        return tuple(name for name, family in self.families.items() if family.hard)

    @cached_property
    def pretrained(self) -> tuple[Family, ...]:
        """The families of the pretraining questions; several may have one name."""
        elsewhere = [family for several in self.elsewhere.values() for family in several]
        return (*self.families.values(), *(elsewhere if self.shows_elsewhere else ()))

    @cached_property
    def named(self) -> dict[str, Family]:
        """A family of each name."""
        return families.by_name(self.pretrained) | dict(self.families)


# The vocabulary has no further place for `add`. Pretraining has no such questions; its wordings
# differ from training by words in front, because the base models do not understand others.
_SMALL_ELSEWHERE = {
    "longer": (
        replace(families.FAMILIES["double"], make=partial(families.double, length=5)),
        replace(families.FAMILIES["shift"], make=partial(families.shift, length=5)),
    ),
    "wording": (
        reworded(families.FAMILIES["add"], ("what is", "so what is")),
        reworded(families.FAMILIES["double"], ("double", "please double")),
        reworded(families.FAMILIES["shift"], ("shift", "please shift")),
        reworded(families.FAMILIES["cipher"], ("key", "please use key")),
    ),
}
_LARGE_ELSEWHERE = {
    "longer": (
        replace(large.FAMILIES["double"], make=partial(families.double, length=9)),
        replace(large.FAMILIES["shift"], make=partial(families.shift, length=9)),
        replace(large.FAMILIES["mirror"], make=partial(large.mirror, length=9)),
        replace(large.FAMILIES["total"], make=partial(large.total, length=9)),
    ),
    "wording": (
        reworded(large.FAMILIES["add"], ("what is", "so what is")),
        *(
            reworded(large.FAMILIES[name], (name, f"please {name}"))
            for name in ("double", "shift", "mirror", "order", "count", "compare")
        ),
    ),
}
SMALL = Language(
    families.FAMILIES,
    families.WORDS,
    phrases.SMALL,
    p_shown=0.5,
    reflection_shape=(10, 168),
    elsewhere=_SMALL_ELSEWHERE,
)
MEDIUM = Language(
    medium.FAMILIES,
    medium.WORDS,
    medium.PHRASES,
    p_shown=0.5,
    reflection_shape=(10, 160),
    elsewhere=medium.ELSEWHERE,
    shows_elsewhere=True,
)
LARGE = Language(
    large.FAMILIES,
    large.WORDS,
    large.PHRASES,
    p_shown=0.75,
    reflection_shape=(32, 448),
    elsewhere=_LARGE_ELSEWHERE,
)
LANGUAGES = {"small": SMALL, "medium": MEDIUM, "large": LARGE}


def of(cfg: config.WorldConfig) -> Language:
    """The language that `cfg.size` chooses."""
    return LANGUAGES[cfg.size]
