"""Scores of reasoning-gym: the library's own, from workers that evaluate no text of the policy."""

import dataclasses

import pytest

from p2o_jax import config
from p2o_jax.data import sources
from p2o_jax.rewards import reasoning_gym
from p2o_jax.rewards.safe_eval import check_formula, evaluate
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.rewards.tagged_json import decode, encode
from p2o_jax.types import Question
from tests import fake_reasoning_gym

CFG = config.DataConfig(prompt_template="{question}")


@pytest.fixture(scope="module")
def gym(tmp_path_factory):
    """Questions of the fake library's tasks by task, and a scorer for them."""
    folder = fake_reasoning_gym.install(tmp_path_factory.mktemp("library"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(reasoning_gym, "SETUP_S", 0.0)
        loaded = sources.load("reasoning_gym:sums,hangs,evaluates?size=3&seed=5", CFG)
        questions = {q.meta["family"]: q for q in loaded.questions}
        with Scorer(config.RewardConfig(workers=1, timeout_s=2.0)) as scorer:
            yield questions, scorer


def test_graded_scores_pass_through(gym):
    questions, scorer = gym
    responses = [r"so \boxed{6}", r"\boxed{\text{7}}", "<answer> 9 </answer>", "6", r"\boxed{x}"]
    verdicts = scorer.judge(responses, [questions["sums"]] * 5)
    assert [v.answer_score for v in verdicts] == [1, 0.5, 0, 0, 0]
    assert [v.status for v in verdicts] == ["correct", "wrong", "wrong", "no_answer", "error"]
    assert [v.format_score for v in verdicts] == [1, 1, 1, 0, 1]
    assert "the scorer of sums: ValueError: invalid literal" in verdicts[4].note


def test_a_scorer_that_never_ends_meets_the_deadline_and_others_are_judged(gym):
    questions, scorer = gym
    other = Question("q", ({"role": "user", "content": "?"},), "42")
    verdicts = scorer.judge(
        [r"\boxed{hang}", r"\boxed{much}", r"\boxed{fine}", r"\boxed{42}", r"\boxed{6}"],
        [*[questions["hangs"]] * 3, other, questions["sums"]],
    )
    statuses = [v.status for v in verdicts]
    assert statuses == ["time_out", "error", "correct", "correct", "correct"]
    assert verdicts[1].note == "the scorer of hangs gave 7.0, not in [0, 1]"


def test_an_answer_is_read_but_not_run(gym, tmp_path):
    questions, scorer = gym
    code = f"[1] if open({str(tmp_path / 'written')!r}, 'w') else 0"
    verdicts = scorer.judge(
        [r"\boxed{[1]}", r"\boxed{[2]}", rf"\boxed{{{code}}}"], [questions["evaluates"]] * 3
    )
    assert [v.status for v in verdicts] == ["correct", "wrong", "error"]
    assert not (tmp_path / "written").exists()


def test_the_score_is_one_of_several_rewards(gym):
    questions, scorer = gym
    cfg = dataclasses.replace(scorer.cfg, fn="correct=3,format")
    with Scorer(cfg) as several:
        several._library = scorer._library  # whose worker runs already
        (verdict,) = several.judge([r"\boxed{7}"], [questions["sums"]])
    assert verdict.answer_score == pytest.approx((3 * 0.5 + 1) / 4)
    assert verdict.by_reward == (("correct", 0.5), ("format", 1.0))


def test_values_survive_json():
    value = {"a": (1, [("x",), None]), "b": {1: {"!tuple": 2}, (2, 3): True}, "c": {"!x": 0.5}}
    assert decode(encode(value)) == value
    with pytest.raises(ValueError, match="metadata holds a set"):
        encode({"a": {1}})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" [1, 'a', (2,)] ", [1, "a", (2,)]),
        ("(0x3a - 2) << 1", 112),
        ("-(7 // 2) * 2 ** 3", -24),
        ("~5 & 0xff | 1 ^ 3", ~5 & 0xFF | 1 ^ 3),
    ],
)
def test_literals_and_arithmetic_are_evaluated(text, value):
    assert evaluate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "'a' * 10 ** 9",
        "[1] + [2]",
        "x",
        "(lambda: 1)()",
        "open('f')",
        "[i for i in (1,)]",
        "a.b",
        "",
    ],
)
def test_nothing_else_is_evaluated(text):
    with pytest.raises((ValueError, SyntaxError)):
        evaluate(text)


@pytest.mark.parametrize(
    "text",
    ["94*4 - 61 - 6", "x**2*sin(x)/3 + C", "2*pi*sqrt(3) - exp(-x)", "(1.5 + .5)^2, log (y)", "5!"],
)
def test_formulas_pass(text):
    check_formula(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "eval(chr(49))",
        "open(0)",
        "x.func",
        "(1).real",
        "lambda x: x",
        "[1]",
        "sympify(x)",
        "print",
        "(eval)(x)",
        "ｅｖａｌ(x)",
        "x" * 3 + "; y",
    ],
)
def test_what_sympy_would_run_does_not_pass(text):
    with pytest.raises(ValueError, match="not a formula"):
        check_formula(text)
