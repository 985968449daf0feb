"""Decontamination: finds questions that overlap with a benchmark.

Two questions overlap if they share 13 consecutive words, or if the words of a shorter question are
the whole of the other.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from p2o_jax.types import Question

N = 13
_WORD = re.compile(r"\w+")
Gram = tuple[str, ...]


def grams(text: str, n: int = N) -> Iterator[Gram]:
    """Yields the n-grams of a text, in lower case and without punctuation.

    A text of fewer than n words has one gram with all of its words.
    """
    words = _WORD.findall(text.lower())
    yield from (tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1)))


class Index:
    """An index of the n-grams of benchmarks' questions."""

    def __init__(self, benchmarks: Mapping[str, Sequence[Question]]):
        self._where: dict[Gram, list[tuple[str, str]]] = {}
        for name, questions in benchmarks.items():
            for question in questions:
                for gram in dict.fromkeys(grams(question.text)):
                    self._where.setdefault(gram, []).append((name, question.id))
        self._where.pop((), None)  # questions without a word

    def overlaps(self, text: str) -> dict[tuple[str, str], str]:
        """Maps (benchmark, question id) of each overlapping question to the first shared words."""
        shared: dict[tuple[str, str], str] = {}
        for gram in grams(text):
            for where in self._where.get(gram, ()):
                shared.setdefault(where, " ".join(gram))
        return shared


def report(
    index: Index, names: Iterable[str], texts: Mapping[str, str]
) -> tuple[dict[str, dict[str, int]], list[dict[str, str]]]:
    """Counts and lists the overlaps of texts with benchmarks.

    Args:
        index: the benchmarks' questions.
        names: the benchmarks to count, in the order of the counts.
        texts: questions to check, by id.

    Returns:
        For each benchmark, the number of texts that overlap with it and the number of its questions
        that they overlap with; and a row per overlap.
    """
    rows = [
        {"id": name, "benchmark": benchmark, "question_id": question_id, "words": words}
        for name, text in texts.items()
        for (benchmark, question_id), words in index.overlaps(text).items()
    ]
    counts = {
        benchmark: {
            "questions": len({row["id"] for row in rows if row["benchmark"] == benchmark}),
            "benchmark_questions": len(
                {row["question_id"] for row in rows if row["benchmark"] == benchmark}
            ),
        }
        for benchmark in names
    }
    return counts, rows
