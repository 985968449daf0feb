"""Figures of a probe, on rollouts whose numbers are worked out by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from p2o_jax.config import DistillConfig
from p2o_jax.evaluation import probe
from p2o_jax.evaluation.probe import RightResponse

RECOMMENDED = DistillConfig(eps_low=1.0)


def rollout(right: bool, tokens: int = 3, ended: bool = True, boxed: bool = True) -> Any:
    completion = SimpleNamespace(token_ids=[0] * tokens, stopped=ended)
    verdict = SimpleNamespace(format_score=float(boxed), status="correct" if right else "error")
    return SimpleNamespace(
        succeeded=right, completion=completion, verdict=verdict, prompt_ids=[0] * 10
    )


def groups(*rates: str):
    """A rollout for each letter: x is right, the others are wrong."""
    return [rollout(letter == "x") for group in rates for letter in group]


def measured(template, *rates, right=(), distill=RECOMMENDED, unsolved=(True, True, True, True)):
    greedy = [rollout("x" in group) for group in rates]
    n = len(rates[0])
    return probe.measure(
        template, greedy, groups(*rates), n, unsolved, right, distill, lambda ids: chr(*ids)
    )


PLAIN = ("....", "....", "....", "....")


def test_shares_and_questions_without_a_plain_success():
    plain = groups("....", "x...", "xxxx", "....")
    unsolved = probe.without_success(plain, 4)
    assert unsolved == [True, False, False, True]
    figures = measured("t", "x...", "xx..", "xxxx", "....", unsolved=unsolved)
    assert (figures.greedy.mean, figures.sampled.mean) == (0.75, 7 / 16)
    assert figures.sampled.low < 7 / 16 < figures.sampled.high
    assert (figures.mixed, figures.unsolved, figures.rescued, figures.lost) == (0.5, 2, 1, 0)
    assert measured("t", "....", "....", "x...", "....", unsolved=unsolved).lost == 1
    assert (figures.format, figures.stopped, figures.response_tokens) == (1.0, 1.0, 3.0)
    assert (figures.generated_tokens, figures.unjudged) == (16 * 3 + 4 * 3, 9 + 1)


def right_response():
    """Of four tokens the paper's mask drops the second, 1e-4 as likely without the template, and
    the last, 20 times as likely.
    """
    templated = np.log(np.array([0.5, 0.9, 0.5, 0.02], np.float32))
    plain = np.log(np.array([0.4, 0.9e-4, 0.5, 0.4], np.float32))
    return RightResponse(np.array([65, 66, 67, 68]), plain, templated)


def test_the_paper_masks_what_the_template_teaches():
    figures = measured("t", "x...", *PLAIN[1:], right=[right_response()] * 2)
    assert (figures.scored, figures.masked_paper, figures.masked) == (2, 0.5, 0.25)
    (low, high) = figures.masked_tokens
    assert (low.token, low.count, high.token, high.count) == ("B", 2, "D", 2)
    assert low.rho == pytest.approx(1e-4, rel=1e-3) and high.rho == pytest.approx(20, rel=1e-3)
    assert figures.log_rho == pytest.approx(np.log([0.8, 1e-4, 1, 20]).mean(), rel=1e-4)


def test_recommendation():
    plain = measured("", *PLAIN)
    top = measured(
        "t", *["xx.."] * 4, right=[right_response()], distill=DistillConfig(eps_low=0.99)
    )
    text = probe.recommendation([plain, top], DistillConfig(eps_low=0.99))
    assert text.startswith("set distill.eps_low=1.0") and "masks 50 %" in text
    mild = RightResponse(*(x[:1] for x in right_response()))
    top = measured("t", *["xx.."] * 4, right=[mild])
    text = probe.recommendation([plain, top], RECOMMENDED)
    assert text.startswith("keep") and text.endswith("eps_low=0.99, drops 0 % of them")
    assert probe.recommendation([plain], RECOMMENDED) == ""


@pytest.mark.parametrize(
    ("plain", "templated", "verdict"),
    [
        (["xx.."] * 4, ["xxx."] * 4, "GRPO is enough: plainly 50 % of responses are right"),
        (PLAIN, ["xxx."] * 4, "P²O can help: plainly 0 % of responses are right, under template 1"),
        (PLAIN, ["x...", "....", "....", "...."], "P²O can help"),  # 6 of 24: 1 in 64
        (PLAIN, PLAIN, "P²O needs better templates"),
        (PLAIN, None, "no templates were tried"),
    ],
)
def test_verdicts(plain, templated, verdict):
    n, many = len(plain[0]), 6  # 24 questions
    unsolved = probe.without_success(groups(*plain), n) * many
    figures = [measured("", *list(plain) * many, unsolved=unsolved)]
    if templated:
        figures.append(measured("t", *list(templated) * many, unsolved=unsolved))
    assert probe.verdict(figures).startswith(verdict)


@pytest.mark.parametrize(
    ("rescued", "lost", "templates", "verdict"),
    [
        (6, 0, 1, "P²O can help"),  # chance 1/64 = .016
        (5, 0, 1, "not clear"),  # 1/32 = .031
        (8, 0, 5, "P²O can help"),  # 1/256 = .0039 < .005
        (7, 0, 5, "not clear"),  # 1/128 = .0078
        (9, 2, 1, "not clear"),  # 67/2048 = .033
        (10, 2, 1, "P²O can help"),  # 79/4096 = .019
    ],
)
def test_few_right_responses_are_judged_by_a_sign_test_of_questions(
    rescued, lost, templates, verdict
):
    unsolved = [True] * (48 - lost) + [False] * lost
    plain = measured("", *["...."] * (48 - lost), *["x..."] * lost, unsolved=unsolved)
    under = ["x..."] * rescued + ["...."] * (48 - rescued)
    others = [measured("u", *["...."] * 48, unsolved=unsolved)] * (templates - 1)
    figures = [plain, measured("t", *under, unsolved=unsolved), *others]
    assert probe.verdict(figures).startswith(verdict)
