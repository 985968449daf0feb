"""Dynamic sampling with a toy sampler that determines which questions have an advantage."""

import jax
import numpy as np
import pytest

from p2o_jax.config import RolloutConfig
from p2o_jax.data.questions import Questions
from p2o_jax.p2o import assign
from p2o_jax.rollout import dynamic_sampling
from p2o_jax.state import Assignment
from p2o_jax.types import Completion, Question, Rollout, Verdict

G, PER_STEP, NUM = 2, 3, 12
QUESTIONS = tuple(
    Question(f"q{i}", ({"role": "user", "content": str(i)},), "1") for i in range(NUM)
)
KEY = jax.random.key(0)


class Toy:
    """Answers prompts and records the questions of each round. Those in `useful` get one success
    and one failure.
    """

    def __init__(self, useful):
        self.useful_ids, self.rounds = set(useful), []

    def answer(self, weights, asks, key):
        self.rounds.append(list(dict.fromkeys(a.question.id for a in asks)))
        return [self._rollout(a, g % G) for g, a in enumerate(asks)]

    def _rollout(self, ask, g):
        score = float(g == 0 and ask.question.id in self.useful_ids)
        completion = Completion(np.ones(1, np.int32), np.zeros(1, np.float32), True)
        return Rollout(
            ask, (1,), (1,), completion, "", Verdict(score, 1.0, "correct" if score else "wrong")
        )

    def useful(self, rollouts):
        return np.array([r.verdict.answer_score for r in rollouts]).reshape(-1, G).std(axis=1) > 0


def fill_step(useful, step=0, rounds=10, assignment=Assignment()):  # noqa: B008
    toy, questions = Toy(useful), Questions(QUESTIONS, PER_STEP, seed=1)
    asked = toy.answer(None, assign.prompts_for(questions.batch(step), assignment, G, "train"), KEY)
    cfg = RolloutConfig(
        questions=PER_STEP, group_size=G, max_sampling_rounds=rounds, dynamic_sampling=True
    )
    return dynamic_sampling.DynamicSampling(toy.answer, questions, cfg, toy.useful)(
        None, asked, assignment, step, KEY
    ), toy


def ids(rollouts):
    return [r.prompt.question.id for r in rollouts[::G]]


def test_asks_until_the_step_is_full_of_groups_that_teach():
    useful = {q.id for q in QUESTIONS[::2]}
    filled, toy = fill_step(useful)
    assert len(filled.trained) == PER_STEP * G and set(ids(filled.trained)) <= useful
    asked = [q for asked in toy.rounds for q in asked]
    assert len(asked) == len(set(asked)) and len(filled.sampled) == len(asked) * G
    assert ids(filled.trained) == [q for q in asked if q in useful][:PER_STEP]
    # no round too many
    assert sum(q in useful for q in [q for asked in toy.rounds[:-1] for q in asked]) < PER_STEP
    assert filled.stats == {
        "rollout/sampling_rounds": len(toy.rounds),
        "rollout/wasted_rollouts": len(filled.sampled) - PER_STEP * G,
    }


def test_a_full_step_asks_nothing_more():
    filled, toy = fill_step({q.id for q in QUESTIONS})
    assert len(toy.rounds) == 1 and filled.stats == {
        "rollout/sampling_rounds": 1,
        "rollout/wasted_rollouts": 0,
    }
    assert filled.trained == filled.sampled


@pytest.mark.parametrize(("rounds", "expected"), [(2, 2), (10, 4)])
def test_ends_at_the_cap_or_when_the_epoch_has_no_more_and_keeps_its_size(rounds, expected):
    filled, toy = fill_step(set(), rounds=rounds)
    assert len(toy.rounds) == expected and len(filled.trained) == PER_STEP * G
    assert ids(filled.trained) == toy.rounds[0]
    assert filled.stats["rollout/wasted_rollouts"] == len(filled.sampled)


def test_further_questions_are_a_function_of_seed_and_step():
    questions = Questions(QUESTIONS, PER_STEP, seed=1)
    again, other = Questions(QUESTIONS, PER_STEP, seed=1), Questions(QUESTIONS, PER_STEP, seed=2)
    orders = []
    for step in (5, 0):  # whatever was asked before
        orders.append([q.id for q in questions.further(step)])
        assert (
            orders[-1] == [q.id for q in again.further(step)] != [q.id for q in other.further(step)]
        )
        assert sorted([*orders[-1], *(q.id for q in questions.batch(step))]) == sorted(
            q.id for q in QUESTIONS
        )
    assert orders[0] != orders[1]


def test_further_questions_are_asked_under_their_templates():
    templates = {q.id: ("z", "") for q in QUESTIONS}
    filled, _ = fill_step({q.id for q in QUESTIONS[::2]}, assignment=Assignment(templates))
    assert [r.prompt.template for r in filled.sampled] == ["z", ""] * (len(filled.sampled) // G)


def test_as_asked_trains_on_what_was_asked():
    rollouts = Toy(set()).answer(
        None, assign.prompts_for(QUESTIONS[:2], Assignment(), G, "train"), KEY
    )
    filled = dynamic_sampling.as_asked(None, rollouts, Assignment(), 0, KEY)
    assert filled.trained is rollouts and filled.sampled is rollouts and filled.stats == {}
