"""Both graders on the pairs of graded_pairs.tsv and on whole responses."""

import csv
import time
from collections import Counter
from pathlib import Path

import pytest

from p2o_jax import config
from p2o_jax.rewards.lenient import Grade, LenientGrader, extract
from p2o_jax.rewards.verify import Verifier

PAIRS = list(
    csv.DictReader(
        (Path(__file__).parent / "graded_pairs.tsv").open(encoding="utf-8"),
        delimiter="\t",
        quoting=csv.QUOTE_NONE,
    )
)
CFG = config.RewardConfig(workers=2, timeout_s=20.0)

# (reference, answer) of known errors of the graders.
STRICT_MISSES = {
    (r"\sin(30^\circ)", r"\frac12"),  # degrees are no factor of pi / 180 to math-verify
    (r"5\text{ m}", r"5\text{ cm}"),  # units are not compared
    (r"\text{ellipse}", r"\text{an ellipse}"),
    (r"e^{i\pi}", "-1"),
}
LENIENT_MISSES = STRICT_MISSES | {
    ("123456789", "123456788"),  # 1e-4 of the number
    ("299792458", "299792459"),
    ("3.1416", "3.1415"),
    ("0.5", "50"),  # a factor of a hundred
    ("[0,1)", "[0,1]"),  # brackets are not compared
    ("[0,1)", "(0,1)"),
    ("[0,1)", "(0,1]"),
    (r"(-\infty,3]", r"(-\infty,3)"),
    (r"[-\frac{1}{2},\infty)", r"(-\frac{1}{2},\infty)"),
    (r"(\frac{3}{5},\frac{8}{3}]", r"[\frac{3}{5},\frac{8}{3}]"),
}


def misses(statuses):
    missed = {
        (p["reference"], p["answer"])
        for p, s in zip(PAIRS, statuses, strict=True)
        if (s == "correct") != (p["verdict"] == "right")
    }
    # no timeouts, no errors
    assert set(statuses) <= {"correct", "wrong", "no_answer"}, Counter(statuses)
    return missed


def boxes():
    return [rf"so \boxed{{{p['answer']}}}" for p in PAIRS]


def test_the_pairs_are_many_and_balanced():
    verdicts = Counter(p["verdict"] for p in PAIRS)
    assert len({(p["reference"], p["answer"]) for p in PAIRS}) == len(PAIRS) >= 400
    assert set(verdicts) == {"right", "wrong"} and min(verdicts.values()) > 150
    assert len({p["kind"] for p in PAIRS}) >= 15


def test_the_strict_grader_is_right_except_for_the_listed_pairs():
    with Verifier(CFG) as verifier:
        missed = misses(
            [v.status for v in verifier.verify(boxes(), [p["reference"] for p in PAIRS])]
        )
    assert missed == STRICT_MISSES and len(missed) <= 0.01 * len(PAIRS)


def test_the_lenient_grader_accepts_the_listed_pairs():
    with LenientGrader(CFG) as grader:
        assert (
            misses([g.status for g in grader.grade(boxes(), [p["reference"] for p in PAIRS])])
            == LENIENT_MISSES
        )


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{1}. The final answer is $2$. I hope it is correct.", "2"),
        (r"The answer is 3, so \boxed{4} 5", "4"),
        (r"\boxed{4} and \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("First, the answer is 3. No: The answer is: 7.5 apples. Then 9", "7.5 apples"),
        ("The final answer is $8$.", "8"),
        ("the answer is\n 12\nand more", "12"),
        ("We have 3 and then 1,234 of them", "1234"),
        ("It is -2.5", "-2.5"),
        (r"\boxed{3", "3"),
        ("nothing", ""),
        ("", ""),
    ],
)
def test_extraction_order(response, answer):
    assert extract(response) == answer


def test_whole_responses_by_both_graders():
    cases = [
        ("The answer is 42.", "42", "no_answer", Grade("42", "correct")),
        (r"\boxed{\text{(B)}} is right", "B", "correct", Grade(r"\text{(B)}", "correct")),
        ("I choose B, not A, so B", "B", "no_answer", Grade("", "no_answer")),
        (r"\boxed{42} or 43", "43", "wrong", Grade("42", "wrong")),
        ("", "1", "no_answer", Grade("", "no_answer")),
    ]
    responses, references = [c[0] for c in cases], [c[1] for c in cases]
    with Verifier(CFG) as verifier, LenientGrader(CFG) as grader:
        assert [v.status for v in verifier.verify(responses, references)] == [c[2] for c in cases]
        assert grader.grade(responses, references) == [c[3] for c in cases]


def test_hostile_answers_meet_the_deadline():
    hostile = [
        r"\boxed{9^{9^{9^9}}}",
        "answer is " * 100_000,
        "(" * 100_000,
        "1" * 100_000,
        r"\boxed{" * 20_000,
    ]
    with LenientGrader(config.RewardConfig(workers=1, timeout_s=1.0)) as grader:
        start = time.monotonic()
        grades = grader.grade([*hostile, r"\boxed{2^3}"], ["5"] * len(hostile) + ["8"])
        assert time.monotonic() - start < 30
    assert (
        grades[0].status == "time_out"
        and grades[-1].status == "correct"
        and all(g.status != "correct" for g in grades[:-1])
    )
