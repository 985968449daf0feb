"""Which questions are hard."""

import numpy as np
import pytest

from p2o_jax import config
from p2o_jax.p2o import mining
from p2o_jax.types import Question

QUESTIONS = [Question(f"q{i}", ({"role": "user", "content": str(i)},), "a") for i in range(5)]
SCORES = np.array(
    [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 1e-7, 0, 0]], np.float32
)
PLAIN = np.zeros((5, 4), bool)
CRUTCH = np.array([[True, True, False, False]] * 5)


def find(scores, templated, max_successes, judge_on):
    pool = QUESTIONS[: len(scores)]
    return mining.find_hard(
        pool,
        scores > 0.5,
        templated,
        config.MiningConfig(max_successes=max_successes, judge_on=judge_on),
    )


@pytest.mark.parametrize(
    ("templated", "most", "judge_on", "hard"),
    [
        (PLAIN, 0, "all", ["q0", "q4"]),
        (PLAIN, 1, "all", ["q0", "q1", "q3", "q4"]),
        (PLAIN, 1, "plain", ["q0", "q1", "q3", "q4"]),
        (PLAIN, 2, "all", ["q0", "q1", "q2", "q3", "q4"]),
        (CRUTCH, 0, "all", ["q0", "q4"]),  # a template's success counts
        (CRUTCH, 0, "plain", ["q0", "q1", "q2", "q4"]),  # the last two rollouts alone decide
        (CRUTCH, 1, "plain", ["q0", "q1", "q2", "q4"]),  # half of two is more than 1 in a group
        (~PLAIN, 0, "plain", ["q0", "q4"]),  # no plain rollout: all of them decide
    ],
)
def test_hard_questions_by_hand(templated, most, judge_on, hard):
    assert find(SCORES, templated, most, judge_on) == tuple(hard)


def test_all_rollouts_succeeding_is_not_hard_however_few_they_are():
    assert find(np.array([[1.0], [0.0]]), np.zeros((2, 1), bool), 1, "all") == ("q1",)
    templated = np.array([[True, True, False]] * 2)  # one judged rollout each
    assert find(np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]), templated, 1, "plain") == ("q1",)


def test_a_question_enters_once():
    cfg = config.MiningConfig(judge_on="all")
    assert mining.find_hard(
        [QUESTIONS[0]] * 2, np.zeros((2, 2), bool), np.zeros((2, 2), bool), cfg
    ) == ("q0",)


def test_all_groups_of_a_question_decide():
    cfg, pair = config.MiningConfig(max_successes=0, judge_on="all"), [QUESTIONS[0]] * 2
    none = np.zeros((2, 2), bool)
    one, two = np.array([[0, 0], [0, 1]], bool), np.array([[1, 0], [0, 1]], bool)
    assert mining.find_hard(pair, one, none, cfg) == ()
    near = config.MiningConfig(max_successes=1, judge_on="all")
    assert mining.find_hard(pair, one, none, near) == ("q0",)
    assert mining.find_hard(pair, two, none, near) == ()


def test_extra_groups_are_for_what_the_last_epoch_found_hard():
    batch = QUESTIONS[:3]
    assert mining.with_extra_groups(batch, ["q1"], config.MiningConfig()) == batch
    asked = mining.with_extra_groups(batch, ["q1", "q4"], config.MiningConfig(extra_plain_groups=2))
    assert [q.id for q in asked] == ["q0", "q1", "q2", "q1", "q1"]


def test_groups_that_teach_nothing_are_counted_apart_for_hard_questions_and_others():
    solved = np.array([[1, 0], [0, 0], [1, 1], [0, 1]], bool)
    zero = np.array([False, True, True, True])
    values = mining.outcome_metrics(
        QUESTIONS[:4], solved, np.zeros((4, 2), bool), zero, ["q0", "q1"]
    )
    assert values == {
        "rollout/frac_zero_advantage": 0.75,
        "rollout/frac_zero_advantage_other": 1.0,
        "hard/frac_zero_advantage": 0.5,
        "hard/frac_easier": 0.5,
    }
