"""Both graders: on pairs of answers and on whole responses."""

import csv
import time
from collections import Counter
from pathlib import Path

import pytest

from p2o_jax import config
from p2o_jax.rewards.lenient import Grade, LenientGrader, extract
from p2o_jax.rewards.verify import Verifier


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


HERE = Path(__file__).parent
PAIRS = read(HERE / "graded_pairs.tsv")
GOLDEN = read(HERE.parent / "golden" / "grader_pairs.tsv")
REJECTED = read(HERE / "rejected_pairs.tsv")
# One worker: each fills caches of SymPy of its own.
CFG = config.RewardConfig(workers=1, timeout_s=20.0)

# (reference, answer) of right answers that both graders reject.
STRICT_MISSES = {
    (r"[2,\infty)", r"x\ge2"),  # an inequality for a set, as in math-verify
}
# Wrong answers that the lenient grader accepts on purpose.
LENIENT_MISSES = {
    ("123456789", "123456788"),  # 1e-4 of the number
    ("299792458", "299792459"),
    ("3.1416", "3.1415"),
    ("2/3", "0.6667"),
    ("0.5", "50"),  # a factor of a hundred
    ("[0,1)", "[0,1]"),  # brackets are not compared
    ("[0,1)", "(0,1)"),
    ("[0,1)", "(0,1]"),
    ("(1,2)", "[1,2]"),
    (r"[2,\infty)", r"(2,\infty)"),
    (r"(-\infty,3]", r"(-\infty,3)"),
    (r"[-\frac{1}{2},\infty)", r"(-\frac{1}{2},\infty)"),
    (r"(\frac{3}{5},\frac{8}{3}]", r"[\frac{3}{5},\frac{8}{3}]"),
    (r"5\text{ m}", r"5\text{ cm}"),  # units and texts are not compared
    (r"5\text{ cm}", r"5\text{ m}"),
    (r"5\text{ kg}", r"5\text{ g}"),
    (r"12\,\text{cm}^2", r"12\,\text{m}^2"),
    (r"1000\text{ km}", r"1000\text{ m}"),
    (r"24\text{ cm}^2", r"24\text{ cm}^3"),
    (r"25^\circ\text{C}", r"25^\circ\text{F}"),
    (r"\$20", r"20\text{ cents}"),
    (r"10:30\text{ a.m.}", r"10:30\text{ p.m.}"),
    (r"n\text{ is even}", r"n\text{ is odd}"),
    (r"n\text{ is even}", "n"),
    (r"\tan 15^\circ", r"\tan 15"),
    (r"\frac{R}{r}", r"\frac{r}{R}"),  # case is not compared
    ("D", "A, B, C, D"),  # the last letter counts
    ("D", "(A) or (D)"),
    ("D", "(A)(D)"),
    ("D", "A) no, D"),
}


def boxes(pairs):
    return [rf"so \boxed{{{p['answer']}}}" for p in pairs]


def references(pairs):
    return [p["reference"] for p in pairs]


@pytest.fixture(scope="module")
def verifier():
    with Verifier(CFG) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def grader():
    with LenientGrader(CFG) as grader:
        yield grader


@pytest.fixture(scope="module")
def strict(verifier):
    """The strict statuses of PAIRS, GOLDEN and REJECTED, by file."""
    responses = {
        "pairs": boxes(PAIRS),
        "golden": [p["response"] for p in GOLDEN],
        "rejected": boxes(REJECTED),
    }
    files = {"pairs": PAIRS, "golden": GOLDEN, "rejected": REJECTED}
    return {
        name: [v.status for v in verifier.verify(responses[name], references(pairs))]
        for name, pairs in files.items()
    }


@pytest.fixture(scope="module")
def lenient(grader):
    """The lenient statuses of the wrong pairs, of every fifth right one, and of GOLDEN."""
    chosen = [p for i, p in enumerate(PAIRS) if p["verdict"] == "wrong" or i % 5 == 0]
    pairs = [g.status for g in grader.grade(boxes(chosen), references(chosen))]
    responses = [p["response"] for p in GOLDEN]
    golden = [g.status for g in grader.grade(responses, references(GOLDEN))]
    return chosen, pairs, golden


def misses(pairs, statuses):
    """The pairs that are judged wrongly, where none timed out or failed."""
    assert set(statuses) <= {"correct", "wrong", "no_answer"}, Counter(statuses)
    return {
        (p["reference"], p["answer"])
        for p, s in zip(pairs, statuses, strict=True)
        if (s == "correct") != (p["verdict"] == "right")
    }


def test_the_pairs_are_many_and_balanced():
    verdicts = Counter(p["verdict"] for p in PAIRS)
    assert len({(p["reference"], p["answer"]) for p in PAIRS}) == len(PAIRS) >= 800
    assert set(verdicts) == {"right", "wrong"} and min(verdicts.values()) > 300
    assert len({p["kind"] for p in PAIRS}) >= 30


def test_the_strict_grader_is_right_except_for_the_listed_pairs(strict):
    assert misses(PAIRS, strict["pairs"]) == STRICT_MISSES


def test_the_strict_grader_is_right_on_the_golden_responses(strict):
    wrong = [
        p
        for p, s in zip(GOLDEN, strict["golden"], strict=True)
        if (s == "correct") != (p["correct"] == "1")
    ]
    assert len(GOLDEN) == 43 and wrong == []


def test_near_misses_hedges_and_injections_are_wrong(strict):
    assert Counter(p["kind"] for p in REJECTED).keys() == {
        "injection",
        "hedge",
        "close",
        "meaning",
    }
    assert len(REJECTED) > 120
    assert [p for p, s in zip(REJECTED, strict["rejected"], strict=True) if s != "wrong"] == []


def test_the_lenient_grader_accepts_the_listed_pairs(lenient):
    chosen, statuses, _ = lenient
    assert misses(chosen, statuses) == LENIENT_MISSES


def test_the_lenient_grader_is_never_stricter(strict, lenient):
    chosen, of_chosen, of_golden = lenient
    by_pair = {id(p): s for p, s in zip(PAIRS, strict["pairs"], strict=True)}
    pairs = [
        *zip(chosen, [by_pair[id(p)] for p in chosen], of_chosen, strict=True),
        *zip(GOLDEN, strict["golden"], of_golden, strict=True),
    ]
    assert [p for p, s, n in pairs if s == "correct" and n != "correct"] == []


TOWERS = [  # reference, answer
    ("5", "9^{9^{9^9}}"),
    ("5", "((((10!)!)!)!)!"),
    ("9^{9^9}", "9^{9^{9^9}}"),
    ("x", "x^{9^{9^9}}"),
    ("5", r"\prod_{n=1}^{10^{9}} n"),
    ("0", "10^{-10^{10}}"),
    ("1e999999999", "1e999999998"),
    ("10^{10^{10}}", "10^{10^{10}}+1"),
    ("5", r"\binom{10^9}{10^8}"),
    ("5", r"\operatorname{eye}(100000)"),
]


def test_power_towers_are_not_right_and_the_answers_after_them_are_judged():
    with Verifier(config.RewardConfig(workers=2, timeout_s=0.8)) as verifier:
        verdicts = verifier.verify(
            [*(rf"\boxed{{{answer}}}" for _, answer in TOWERS), r"\boxed{7}"],
            [*(reference for reference, _ in TOWERS), "7"],
        )
    assert [v.answer_score for v in verdicts] == [0.0] * len(TOWERS) + [1.0]
    assert {v.status for v in verdicts[:-1]} <= {"wrong", "time_out", "error"}


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{1}. The final answer is $2$. I hope it is correct.", "1"),
        (r"The final answer is $2$. I hope it is correct. The answer is 1", "2"),
        ("<think>The answer is 3</think>It is 4", "4"),
        ("<think>The answer is 3", ""),
        (r"The answer is 3, so \boxed{4} 5", "4"),
        (r"\boxed{4} and \boxed{\frac{1}{2}}", r"4, \frac{1}{2}"),
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


def test_whole_responses_by_both_graders(verifier, grader):
    cases = [
        ("The answer is 42.", "42", "no_answer", Grade("42", "correct")),
        (r"\boxed{\text{(B)}} is right", "B", "correct", Grade(r"\text{(B)}", "correct")),
        ("I choose B, not A, so B", "B", "no_answer", Grade("", "no_answer")),
        (r"\boxed{42} or 43", "43", "wrong", Grade("42", "wrong")),
        ("", "1", "no_answer", Grade("", "no_answer")),
    ]
    responses, references = [c[0] for c in cases], [c[1] for c in cases]
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
