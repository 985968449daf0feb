"""Shared runs of 13 words, by hand."""

from p2o_jax.data import overlap
from p2o_jax.types import Question

WORDS = [f"w{i}" for i in range(20)]


def question(name, text):
    return Question(name, ({"role": "user", "content": text},), "1")


def test_grams_by_hand():
    assert list(overlap.grams("One, two -- THREE!", 2)) == [("one", "two"), ("two", "three")]
    assert list(overlap.grams("One, two", 3)) == [("one", "two")]
    assert len(list(overlap.grams(" ".join(WORDS)))) == 8


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not():
    index = overlap.Index(
        {"b": [question("q", " ".join(WORDS))], "c": [question("r", "What is 1 + 1?")]}
    )
    assert index.overlaps("So: " + ", ".join(WORDS[3:16]).upper() + " and so on") == {
        ("b", "q"): " ".join(WORDS[3:16])
    }
    assert index.overlaps("So: " + " ".join(WORDS[3:15]) + " x " + " ".join(WORDS[5:17])) == {}
    assert index.overlaps("what is 1 + 1") == {("c", "r"): "what is 1 1"}
    assert index.overlaps("What is 1 + 1 and 2 + 2?") == {}
    assert index.overlaps("") == overlap.Index({"d": [question("s", "?")]}).overlaps("!") == {}


def test_report_counts_questions_on_both_sides():
    index = overlap.Index({"b": [question("q", "a b c"), question("r", "a b d")], "c": []})
    counts, rows = overlap.report(index, ["b", "c"], {"1": "A b c", "2": "a, b, c!", "3": "x"})
    assert counts == {
        "b": {"questions": 2, "benchmark_questions": 1},
        "c": {"questions": 0, "benchmark_questions": 0},
    }
    assert [(row["id"], row["question_id"], row["words"]) for row in rows] == [
        ("1", "q", "a b c"),
        ("2", "q", "a b c"),
    ]
