"""Which questions are hard."""

import numpy as np
import pytest

from p2o_jax import config, mining
from p2o_jax.records import Question

QUESTIONS = [Question(f"q{i}", ({"role": "user", "content": str(i)},), "a") for i in range(5)]
SCORES = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 1e-7, 0, 0]], np.float32)
PLAIN = np.zeros((5, 4), bool)
CRUTCH = np.array([[True, True, False, False]] * 5)


def find(scores, templated, include_near_hard, judge_on):
    pool = QUESTIONS[: len(scores)]
    return mining.find_hard(pool, scores, templated, config.Mining(include_near_hard=include_near_hard, judge_on=judge_on))


@pytest.mark.parametrize(
    ("templated", "near", "judge_on", "hard"),
    [
        (PLAIN, False, "all", ["q0", "q4"]),
        (PLAIN, True, "all", ["q0", "q1", "q3", "q4"]),
        (PLAIN, True, "plain", ["q0", "q1", "q3", "q4"]),
        (CRUTCH, False, "all", ["q0", "q4"]),  # a template's success counts
        (CRUTCH, False, "plain", ["q0", "q1", "q2", "q4"]),  # the last two rollouts alone decide
        (CRUTCH, True, "plain", ["q0", "q1", "q2", "q3", "q4"]),
        (~PLAIN, False, "plain", ["q0", "q4"]),  # no plain rollout: all of them decide
    ],
)
def test_hard_questions_by_hand(templated, near, judge_on, hard):
    assert find(SCORES, templated, near, judge_on) == tuple(hard)


def test_one_success_in_a_group_of_one_is_not_near_hard():
    assert find(np.array([[1.0], [0.0]]), np.zeros((2, 1), bool), True, "all") == ("q1",)
    templated = np.array([[True, True, False]] * 2)  # one judged rollout each
    assert find(np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]), templated, True, "plain") == ("q1",)


def test_a_question_enters_once():
    cfg = config.Mining(judge_on="all")
    assert mining.find_hard([QUESTIONS[0]] * 2, np.zeros((2, 2)), np.zeros((2, 2), bool), cfg) == ("q0",)


def test_all_groups_of_a_question_decide():
    cfg, pair = config.Mining(include_near_hard=False, judge_on="all"), [QUESTIONS[0]] * 2
    none = np.zeros((2, 2), bool)
    assert mining.find_hard(pair, np.array([[0, 0], [0, 1.0]]), none, cfg) == ()
    near = config.Mining(include_near_hard=True, judge_on="all")
    assert mining.find_hard(pair, np.array([[0, 0], [0, 1.0]]), none, near) == ("q0",)
    assert mining.find_hard(pair, np.array([[1.0, 0], [0, 1.0]]), none, near) == ()


def test_extra_groups_are_for_what_the_last_epoch_found_hard():
    batch = QUESTIONS[:3]
    assert mining.with_extra_groups(batch, ["q1"], config.Mining()) == batch
    found = mining.with_extra_groups(batch, ["q1", "q4"], config.Mining(extra_plain_groups=2))
    assert [q.id for q in found] == ["q0", "q1", "q2", "q1", "q1"]
