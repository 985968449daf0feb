"""The toy world's questions for training and evaluation: text and answer, without chains."""

import random
from dataclasses import replace

from p2o_jax import config
from p2o_jax.toy_world import families, languages
from p2o_jax.types import Question, question_id

ELSEWHERE = tuple(
    dict.fromkeys(name for language in languages.LANGUAGES.values() for name in language.elsewhere)
)


def train_questions(cfg: config.WorldConfig) -> list[Question]:
    """Draws `hard_per_family` questions of each hard family and `easy_per_family` of each easy one.

    A hint names the strategy of its family. All questions are distinct. They come from a part of
    the question space that pretraining and evaluation do not use (`families.split_of`).
    """
    questions = []
    language = languages.of(cfg)
    for family in language.families.values():
        drawn = _questions(
            cfg, family, "train", cfg.hard_per_family if family.hard else cfg.easy_per_family
        )
        hint, *_ = language.phrases.strategies.get(family.name, ("",))
        questions += [replace(question, hint=hint) for question in drawn]
    return questions


def heldout_questions(cfg: config.WorldConfig) -> list[Question]:
    """Draws `heldout_per_family` questions of each hard family.

    They come from a part of the question space that training and pretraining do not use.
    """
    hard = [family for family in languages.of(cfg).families.values() if family.hard]
    return [
        question
        for family in hard
        for question in _questions(cfg, family, "heldout", cfg.heldout_per_family)
    ]


def elsewhere_questions(cfg: config.WorldConfig, name: str) -> list[Question]:
    """Draws `heldout_per_family` questions of each family of one of the `ELSEWHERE` sets, which
    differ from training in kind.

    Raises:
        ConfigError: the world of this size has no such set.
    """
    several = languages.of(cfg).elsewhere
    if name not in several:
        raise config.ConfigError(
            f"world:{name}: config.world.size={cfg.size} has no such held-out set, only"
            f" {', '.join(several)}"
        )
    return [
        question
        for family in several[name]
        for question in _questions(cfg, family, "heldout", cfg.heldout_per_family, f"/{name}")
    ]


def _questions(
    cfg: config.WorldConfig,
    family: families.Family,
    split: families.Split,
    count: int,
    name: str = "",
) -> list[Question]:
    """Draws distinct questions of a family.

    Args:
        cfg: settings of the world.
        family: the family.
        split: the part of the question space.
        count: number of questions.
        name: distinguishes the draw from others of the split.
    """
    rng = random.Random(f"{cfg.seed}/world/{split}/{family.name}{name}")
    drawn: dict[str, families.Problem] = {}
    while len(drawn) < count:
        problem = family.draw(rng, split)
        drawn.setdefault(problem.question, problem)
    return [_question(problem, family) for problem in drawn.values()]


def _question(problem: families.Problem, family: families.Family) -> Question:
    messages = ({"role": "user", "content": problem.question},)
    meta = {"family": family.name, "hard": family.hard}
    return Question(question_id(messages), messages, problem.answer, "world", meta)
