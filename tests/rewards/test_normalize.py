"""Answers as text and as plain numbers: Unicode, spellings, canonical forms."""

import time

import pytest

from p2o_jax.rewards import normalize


@pytest.mark.parametrize(
    ("spellings", "canonical"),
    [
        (["1234", "1,234", "$1,234.0$", r"1{,}234", r"\boxed{\text{1234}}", "1\u2009234"], "1234"),
        (["1/2", "0.5", ".50", r"\dfrac{1}{2}", r"\tfrac12", "½", r"\boxed{\frac{2}{4}}"], "1/2"),
        (["3/2", "1½", "1 1/2", r"1\frac{1}{2}", "1.5"], "3/2"),
        (["-7", "−7", "- 7", "–7", r"\text{-7}", "**-7**", r"\(-7\)", "{-7}", "-7."], "-7"),
        (["1/1000", "1e-03", "0.001", "10^{-3}", "10^-3", r"1\times10^{-3}", "1E-3"], "1/1000"),
        (["4.5e3", "4.5e+3", r"4.5 \times 10^{3}", r"45\cdot 10^{2}", "4.5×10³"], "4500"),
        (["5", "５", "𝟓"], "5"),
        ([r"\sqrt{2}", "√2", "√(2)", "√{2}"], r"\sqrt{2}"),
        (["x^{2}", "x²"], "x^{2}"),
        ([r"45^\circ", "45°", r"45 ^\circ"], r"45^\circ"),
        ([r"\infty", "∞"], r"\infty"),
        (["2516_{8}", "2516₈"], "2516_{8}"),
        ([r"\mathbb{R}", "ℝ"], r"\mathbb{R}"),
        ([r"\alpha+\beta", "α+β"], r"\alpha+\beta"),
    ],
)  # fmt: skip
def test_spellings_have_one_canonical_form(spellings, canonical):
    assert {s: normalize.canonical(s) for s in spellings} == dict.fromkeys(spellings, canonical)


@pytest.mark.parametrize(
    "text",
    # Euler's number; a range; two numbers; a product or a mixed number; a list; beyond all bounds
    ["2e", "e-5", "3–5", "1 234", r"2\frac{7}{3}", "1, 234", "1e999999999", "10^{10^{10}}", "٣"],
)
def test_what_is_not_plainly_a_number_stays_text(text):
    assert normalize.number(normalize.normalize(text)) is None


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("0.333333", "1/3", True),  # six places, rounded
        ("0.666667", "2/3", True),
        ("0.666666", "2/3", False),  # cut off
        ("0.33333", "1/3", False),
        ("0.1234561", "0.1234564", False),  # both have seven places
        ("0.123456", "0.1234564", True),
        ("0.123457", "0.1234564", False),
        ("0.000001", "0.0000012", False),  # one digit
        ("2.0000001", "2", False),
        ("0.30000000000000004", "0.3", True),  # a float, printed
        ("1.9999999999999998", "2", True),
        ("1000000000000001", "1000000000000000", False),
        (r"1\times10^{-19}", r"2\times10^{-19}", False),
        ("12.34568", "12.345678", False),  # five places
        ("1e400", "10^{400}", True),
    ],
)
def test_decimals_stand_for_what_they_are_the_rounding_of(a, b, equal):
    assert normalize.equal(a, b) is equal
    assert normalize.equal(b, a) is equal


@pytest.mark.parametrize("piece", ["√(", "²", "½", "{", r"\text{", "–", "1,", "1e", "\u2009", "$"])
def test_long_answers_take_little_time(piece):
    start = time.process_time()
    normalize.canonical(piece * 4000)
    assert time.process_time() - start < 1
