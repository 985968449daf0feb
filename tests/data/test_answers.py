r"""Reference answers of any type as text, and the final answers of solutions."""

import json
from decimal import Decimal

import pytest

from p2o_jax.data import answers, tables


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" 5 ", "5"),
        (7, "7"),
        (10**30, "1" + "0" * 30),
        (0.1, "0.1"),
        (0.00001, "0.00001"),
        (1e22, "1" + "0" * 22),
        (-2.5e-7, "-0.00000025"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1E+3"), "1000"),
        (True, "True"),
        (False, "False"),
        ([1, "x", 0.00001, True], "1, x, 0.00001, True"),
        (["5"], "5"),
        ([{"role": "assistant", "content": " so 5 "}], "so 5"),
    ],
)
def test_text_of_values(value, text):
    assert answers.as_text(value) == text


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (None, "missing"),
        (float("nan"), "missing"),
        ("  ", "empty"),
        ([], "empty"),
        (["a", " "], "empty"),
        ([None], "expected a list of texts and numbers"),
        ([[1]], "expected a list of texts and numbers"),
        ({"a": 1}, "expected a text, a number or a list of them, got an object"),
        (float("inf"), "expected a finite number"),
        (1e301, "more than 300 digits"),
        ("\ud800", "half a surrogate pair"),
    ],
)
def test_values_without_a_text(value, rule):
    with pytest.raises(ValueError, match=rule):
        answers.as_text(value)


@pytest.mark.parametrize("written", ["0.00001", "1.50", "3.14159265358979323846264", "-0.0"])
def test_numbers_of_json_files_keep_their_digits(tmp_path, written):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"answer": {written}, "other": [{written}]}}\n')
    ((_, record),) = tables.read(path)
    assert answers.as_text(record["answer"]) == written
    assert json.loads(json.dumps(record["other"])) == [float(written)]


GSM8K = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = 72 altogether.\n#### 72"
MATH = r"As $x = 2 \cdot 3$, we get $\boxed{\frac{1}{6}}$, no, $\boxed{6}$, and so $\boxed{7}$."


@pytest.mark.parametrize(
    ("text", "answer", "where"),
    [
        (GSM8K, "72", answers.HASHES),
        ("#### 72", "72", answers.HASHES),
        ("So\n####  1,234,567 \n\n", "1234567", answers.HASHES),
        ("So\n#### $1,000.50", "$1000.50", answers.HASHES),
        ("So\n#### (1,200)", "(1,200)", answers.HASHES),
        (GSM8K + "\nThat is it.", GSM8K + "\nThat is it.", ""),
        ("a #### b", "a #### b", ""),
        (MATH, "7", answers.BOX),
        (r"so \fbox{3}", "3", answers.BOX),
        (r"so $\boxed 3$.", "3", answers.BOX),
        (r"\boxed{42}", "42", answers.BOX),
        (r"cut off \boxed{42", r"cut off \boxed{42", ""),
        (r"\frac{1}{2}", r"\frac{1}{2}", ""),
        ("72", "72", ""),
    ],
)
def test_final_answers_of_solutions(text, answer, where):
    assert answers.final_answer(text) == (answer, where)
    assert answers.as_reference(text, "raw") == (text.strip(), "")
