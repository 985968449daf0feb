"""The check of reference answers at the start of a run."""

import pytest

from p2o_jax import config
from p2o_jax.rewards import references
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.types import Question


def lines(answers, scorer="", **reward):
    questions = [Question(str(i), (), a, scorer=scorer) for i, a in enumerate(answers)]
    with Scorer(config.RewardConfig(workers=1, **reward)) as grader:
        return references.notices(grader, questions)


def test_numbers_and_formulas_are_no_text():
    assert lines(["72", "1,000", r"\frac{1}{2}", "2x+1", "10 cm", r"3\text{ apples}", "(A)"]) == []


def test_texts_are_counted_with_their_share():
    (line,) = lines(["Paris", "72", "Alice sold 24 clips in May, 24/2 = 12.", "3"])
    assert line.startswith("2 of 4 reference answers (50%) are text, not mathematics, e.g. 'Paris'")


def test_answers_that_no_box_can_hold_are_named():
    (line,) = lines(["}{", "72"])
    assert line.startswith("1 reference answers do not verify against themselves, e.g. '}{'")


def test_only_compared_answers_are_checked():
    assert lines(["Paris", "}{"], scorer="reasoning_gym") == []
    assert lines(["Paris", "}{"], fn="a:b") == []
    assert lines(["Paris"], kind="exact") == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("yes", True),
        (r"\text{Evelyn}", True),
        ("red, blue", True),
        ("Alice Smith", True),
        ("We have that x is 3 here", True),
        ("x", False),
        ("ab", False),
        (r"\sin x", False),
        ("5:30 pm", False),
        ("2 hours 30 minutes", False),
        (r"\sqrt{2}", False),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", False),
        ("", False),
    ],
)
def test_what_counts_as_text(answer, expected):
    assert references.is_text(answer) is expected
