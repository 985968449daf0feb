"""Metrics of a step from those of its parts."""

import dataclasses
import re

import pytest

from p2o_jax.tracking import metric_names, recorder
from p2o_jax.types import Verdict
from tests.factories import make_question, make_rollout

GAP = "train/logprob_gap_"


def gap(mean: float, largest: float, tokens: float) -> dict[str, float]:
    return {GAP + "mean": mean, GAP + "max": largest, GAP + "tokens": tokens}


def test_the_gap_counts_tokens_wherever_it_was_measured():
    """30 tokens at .1 before the updates, 10 at .5 in the first, none in the second."""
    updates = [
        {"train/bad_updates": 0.0, "train/loss": 1.0, **gap(0.5, 0.6, 10)},
        {"train/bad_updates": 1.0, "train/loss": 3.0},
    ]
    values = metric_names.of_updates({"distill/ratio_p50": 2.0, **gap(0.1, 0.9, 30)}, updates)
    assert values == {
        "distill/ratio_p50": 2.0,
        "train/loss": 2.0,
        "train/bad_updates": 1.0,
        **gap(0.2, 0.9, 40),
    }


def test_where_nothing_was_measured_there_is_no_gap():
    assert metric_names.of_updates({}, [{"train/bad_updates": 0.0}]) == {"train/bad_updates": 0.0}


def scored(text: str, score: float, **parts: float):
    rollout = make_rollout(make_question(answer="1,5"), text=text, score=score)
    verdict = Verdict(score, 1.0, "wrong", by_reward=tuple(parts.items()))
    return dataclasses.replace(rollout, verdict=verdict)


def test_each_of_several_rewards_has_its_mean():
    rollouts = [scored("", 0.5, correct=1.0, brevity=0.25), scored("", 0.5, correct=0, brevity=1)]
    values = metric_names.rollout_metrics(rollouts)
    means = {name: value for name, value in values.items() if "by_name" in name}
    assert means == {"reward/by_name/correct": 0.5, "reward/by_name/brevity": 0.625}
    assert not any("by_name" in name for name in metric_names.rollout_metrics([scored("", 1)]))


@pytest.mark.parametrize(
    ("name", "is_known"),
    [
        ("reward/by_name/brevity", True),
        ("eval/by_name/brevity", True),
        ("eval/aime24/by_name/brevity", True),
        ("eval/by_name", False),
        ("train/by_name/brevity", False),
        ("reward/brevity", False),
    ],
)
def test_names_of_rewards_are_known(name, is_known):
    assert metric_names.is_known(name) is is_known


def test_a_metric_of_a_set_or_of_one_reward_has_the_meaning_of_its_kind():
    assert (
        metric_names.meaning("train/loss") == "loss of the mini-batch, mean over the step's updates"
    )
    length = metric_names.METRICS["eval/mean_tokens"]
    assert metric_names.meaning("eval/aime24/mean_tokens") == f"aime24: {length}"
    reward = metric_names.METRICS["eval/by_name/NAME"]
    assert metric_names.meaning("eval/by_name/brevity") == f"brevity: {reward}"
    assert metric_names.meaning("eval/aime24/by_name/brevity") == f"aime24: brevity: {reward}"
    assert metric_names.meaning("no/such") is None


def test_meanings_can_be_read_alone():
    """A report shows one beside its curve, without the one before it."""
    leaning = re.compile(r"^(its|their|what they)\b|\bthe same\b|\blikewise\b|\bsuch\b|\bof those,")
    assert [name for name, text in metric_names.METRICS.items() if leaning.search(text)] == []


def test_boxes_without_a_reward_are_reported_with_an_example():
    bare, boxed = scored("no box", 0.0), scored(r"so \\boxed{15}", 0.0)
    notice = recorder._unrewarded_boxes([bare, boxed])
    assert notice.startswith("!!! all rewards for answers in the first step are 0, although 50%")
    assert "such as '15' where the reference answer is '1,5'" in notice
    assert recorder._unrewarded_boxes([bare]) == ""
    polite = dataclasses.replace(boxed, verdict=scored("", 0.2, correct=0.0, format=1.0).verdict)
    assert recorder._unrewarded_boxes([polite]) != ""
    assert recorder._unrewarded_boxes([boxed, scored("", 0.1)]) == ""
