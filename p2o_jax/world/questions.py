"""The world's questions for training and for evaluation, as the rest of the system sees them: text and answer, no chain, no template."""

import random

from p2o_jax import config
from p2o_jax.records import Question, question_id
from p2o_jax.world import families


def train_questions(cfg: config.World) -> list[Question]:
    """`hard_per_family` questions of each hard family and `easy_per_family` of each easy one, all distinct.

    They come from a part of the question space that pretraining and evaluation never touch (`families.split_of`).
    """
    questions = []
    for name, family in families.FAMILIES.items():
        questions += _questions(cfg, name, "train", cfg.hard_per_family if family.hard else cfg.easy_per_family)
    return questions


def heldout_questions(cfg: config.World) -> list[Question]:
    """`heldout_per_family` questions of each hard family, from a part of the question space of their own."""
    return [question for name in families.HARD for question in _questions(cfg, name, "heldout", cfg.heldout_per_family)]


def _questions(cfg: config.World, family: str, split: families.Split, count: int) -> list[Question]:
    rng = random.Random(f"{cfg.seed}/world/{split}/{family}")
    drawn: dict[str, families.Problem] = {}
    while len(drawn) < count:
        problem = families.draw(rng, family, split)
        drawn.setdefault(problem.question, problem)
    return [_question(problem) for problem in drawn.values()]


def _question(problem: families.Problem) -> Question:
    messages = ({"role": "user", "content": problem.question},)
    meta = {"family": problem.family, "hard": families.FAMILIES[problem.family].hard}
    return Question(question_id(messages), messages, problem.answer, "world", meta)
