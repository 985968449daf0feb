"""Incomplete or mixed groups are rejected, and groups of equal rewards have zero advantage."""

from dataclasses import replace

import numpy as np
import pytest

from p2o_jax.config import AdvConfig
from p2o_jax.rl.advantages import assert_groups, group_advantages, zero_advantage
from p2o_jax.types import Completion, Rollout
from tests.factories import make_completion, make_question, make_rollout


def rollout(question: str, number: int) -> Rollout:
    return make_rollout(
        make_question(question),
        name=f"{question}/{number}",
        completion=make_completion((0, 1, 2)),
        score=0.0,
        format_score=0.0,
    )


GOOD = [rollout(q, i) for q in "ab" for i in range(2)]


def test_groups_of_one_question_each_are_fine():
    assert_groups(GOOD, 2)
    assert_groups([], 2)


@pytest.mark.parametrize(
    ("rollouts", "message"),
    [
        (GOOD[:3], "3 rollouts do not form groups of 2"),
        ([GOOD[0], GOOD[2], GOOD[1], GOOD[3]], "rollouts 0 to 1 mix the questions"),
        (
            [*GOOD[:3], replace(GOOD[3], completion=Completion(np.arange(3), np.zeros(2), True))],
            "rollout b/1 has 3 tokens and 2 log-probs",
        ),
    ],
    ids=["torn", "mixed", "missing log-prob"],
)
def test_malformed_groups_are_rejected(rollouts, message):
    with pytest.raises(AssertionError, match=message):
        assert_groups(rollouts, 2)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_equal_rewards_have_no_advantage_whatever_they_round_to(kind):
    reward_QG = np.repeat(np.float32([[0.9], [0.3], [1 / 3], [0.0]]), 6, axis=1)
    assert reward_QG[0].mean() != reward_QG[0, 0], "a float32 mean of equal numbers is another"
    advantage_QG = group_advantages(reward_QG, AdvConfig(kind=kind))
    assert np.all(advantage_QG == 0) and zero_advantage(advantage_QG).all()
    one_better = np.concatenate([reward_QG[:1, :5], [[1.0]]], axis=1)
    assert group_advantages(one_better, AdvConfig(kind=kind))[0, 5] > 0
