"""Several rewards with weights, and who judges which question."""

import textwrap

import pytest

from p2o_jax import config
from p2o_jax.config import reward_terms
from p2o_jax.rewards import examples
from p2o_jax.rewards.scorer import Scorer, untrusted
from p2o_jax.types import Question

QUESTION = Question("q", ({"role": "user", "content": "6 * 7?"},), "42")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A scorer of correctness, format and two functions of one file."""
    file = tmp_path_factory.mktemp("rewards") / "mine.py"
    file.write_text(
        textwrap.dedent("""
            loaded = []

            def polite(messages, response, answer, meta):
                if response == "fail":
                    raise KeyError("no manners")
                return float("please" in response), "Say please."

            def once(messages, response, answer, meta):
                loaded.append(1)
                return 1.0
            """)
    )
    fn = f"correct=6,format=2,{file}:polite,{file}:once"
    with Scorer(config.RewardConfig(fn=fn, workers=1, timeout_s=20.0)) as scorer:
        assert scorer.problems() == []
        yield scorer


def test_scores_are_the_weighted_mean_by_hand(several):
    right, wrong, bare = several.judge(
        [r"please \boxed{42}", r"\boxed{41}", "please 42"], [QUESTION] * 3
    )
    assert right.answer_score == 1 and right.status == "correct"
    assert wrong.answer_score == pytest.approx((2 + 1) / 10) and wrong.status == "wrong"
    assert bare.answer_score == pytest.approx((1 + 1) / 10) and bare.status == "no_answer"
    assert [v.format_score for v in (right, wrong, bare)] == [1, 1, 0]
    assert wrong.by_reward == (("correct", 0), ("format", 1), ("polite", 0), ("once", 1))
    assert wrong.note.split("\n") == [
        "correct: 0.00",
        "format: 1.00",
        "polite: 0.00 (Say please.)",
        "once: 1.00",
    ]


def test_a_reward_that_fails_makes_the_whole_an_error(several):
    (verdict,) = several.judge(["fail"], [QUESTION])
    assert (verdict.answer_score, verdict.status) == (0, "error")
    assert "KeyError: 'no manners'" in verdict.note


def test_a_single_reward_keeps_its_exact_score_and_has_no_parts():
    (term,) = reward_terms.reward_terms("format=0.3")
    assert term == ("format", "format", 0.3)
    with Scorer(config.RewardConfig(fn="format=0.3")) as scorer:
        (verdict,) = scorer.judge([r"\boxed{1}"], [QUESTION])
    assert verdict.answer_score == 1 and verdict.by_reward == () and verdict.note == ""


def test_the_list_is_read_with_names_and_weights():
    fn = "correct , a.b:length=0.5,/x=1/f.py:g"
    assert reward_terms.problems(fn) == []
    assert reward_terms.reward_terms(fn) == (
        ("correct", "correct", 1.0),
        ("length", "a.b:length", 0.5),
        ("g", "/x=1/f.py:g", 1.0),
    )
    assert reward_terms.reward_terms("") == (("correct", "correct", 1.0),)
    assert reward_terms.absolute("correct=2,/a/../f.py:g=1") == "correct=2,/f.py:g=1"


@pytest.mark.parametrize(
    ("fn", "rule"),
    [
        ("correct,nothing", "config.reward.fn=nothing: expected FILE.py:function"),
        ("correct,", "config.reward.fn=: expected FILE.py:function"),
        ("correct=0", "the weight must be a number above 0"),
        ("correct=nan", "the weight must be a number above 0"),
        ("correct=-1", "the weight must be a number above 0"),
        ("a:f,b:f", "two rewards are named f"),
    ],
)
def test_a_wrong_list_is_an_error(fn, rule):
    (line,) = reward_terms.problems(fn)
    assert rule in line


def test_weights_by_which_success_is_not_correctness_are_reported():
    assert reward_terms.notices("correct,format=0.2,a:b=0.1", 0.5) == []
    (wrong,) = reward_terms.notices("correct=2,format=3", 0.3)
    assert "a wrong answer can score 0.60" in wrong
    (right,) = reward_terms.notices("correct,format,a:b", 0.5)
    assert "a right answer alone scores 0.33" in right
    assert reward_terms.notices("a:b,format", 0.5) == []


def test_only_code_outside_of_the_package_needs_trust():
    def lines(fn):
        return untrusted(config.RewardConfig(fn=fn, env=("KEY",)), "run/config.json")

    assert lines("") == lines("correct,format,p2o_jax.rewards.examples:brevity=0.1") == []
    (line,) = lines("correct,mine:reward=0.1")
    assert "mine:reward" in line and "KEY" in line and "--allow-reward-fn" in line


def test_brevity_by_hand():
    assert examples.brevity([], "a " * 200, "", {}) == 1
    assert examples.brevity([], "a " * 400, "", {}) == 0.5
    assert examples.brevity([], "", "", {}) == 1
