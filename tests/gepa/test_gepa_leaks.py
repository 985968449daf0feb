"""Templates that reveal a question or an answer of their minibatch."""

import pytest
from gepa_toy import questions

from p2o_jax.gepa import leaks
from p2o_jax.types import Question


def ask(text, answer):
    return Question("q", ({"role": "user", "content": text},), answer)


@pytest.mark.parametrize(
    ("template", "answer", "expected"),
    [
        ("The answer is 1729.", "1729", True),
        ("Box it: \\boxed{ 1729 }", "1729", True),
        ("Take 17290 or 0.1729 or x1729", "1729", False),
        ("Do 12 steps.", "12", False),  # too short to mean anything
        ("Finish with \\boxed{12}.", "12", True),
        ("It is \\frac{1} {2} here", "\\frac{1}{2}", True),
        ("Use x+1 as the factor", "x + 1", True),
        ("Say Nine  Apples", "nine apples", True),
        ("Say nineapples", "nine apples", False),
        ("Say 1 2 3 4", "1234", False),
        ("Anything", "", False),
        ("Anything \\boxed{}", " ", False),
        # one number in many forms
        ("The answer is 1,234.", "1234", True),
        ("The answer is $1{,}234$.", "1234", True),
        ("Box it: \\boxed{\\text{42}}", "42", True),
        ("Box it: \\boxed{\\boxed{42.0}}", "42", True),
        ("First \\boxed{1}, then \\boxed{\\dfrac{84}{2}}, then \\boxed", "42", True),
        ("Use \\dfrac{1}{2} here", "\\frac{1}{2}", True),
        ("Start from 0.5, then", "1/2", True),
        ("Start from 1/2.", "0.5", True),
        ("Start from ½.", "0.50", True),
        ("The result is １２３４", "1234", True),
        ("It is 4.5\\times 10^{3}, always", "4500", True),
        ("It is 4.5e3, always", "4,500", True),
        ("Expect 2\\frac{1}{2}", "2.5", True),
        ("Say **Nine Apples** \\boxed{NINE  apples}", "\\text{nine apples}", True),
        ("Take \\left(1, 2\\right).", "(1,2)", True),
        ("Choose \\boxed{\\textbf{B}}", "B", True),
        # other numbers, and numbers that mean nothing
        ("Choose plan B", "B", False),
        ("Take 1,234,567 or 91,234", "1234", False),
        ("Multiply by 0.05, not 10.5", "1/2", False),
        ("Of 12.0 units", "12", False),
        ("Take 2 of 4 steps", "\\frac{2}{4}", False),
        ("Take -0.5 or 0.5.1", "1/2", False),
        ("Simplify 10/20.", "1/2", True),
        ("Use the formula x^{1234}", "1234", True),
        ("Use step_1234 or v1234", "1234", False),
    ],
)
def test_leak_guard_finds_reference_answers(template, answer, expected):
    minibatch = [ask("What?", "no such thing"), ask("Which?", answer)]
    assert leaks.leaks(template, minibatch) is expected


def test_leak_guard_finds_eight_words_of_a_question():
    question = ask("Alice has five red apples and gives two of them to Bob.", "xyz")
    assert leaks.leaks("If alice has FIVE red apples, and gives two: subtract.", [question])
    assert not leaks.leaks("If alice has five red apples and gives three: subtract.", [question])


def test_leak_guard_ignores_the_wording_that_all_questions_share():
    suffix = "Please reason step by step, and put your final answer within \\boxed{}."
    pool = [ask(f"{q.text}\n\n{suffix}", q.answer) for q in questions(6)]
    assert leaks.leaks(suffix, pool[:1])
    assert not leaks.leaks(suffix, pool[:1], leaks.common_ngrams(pool))
