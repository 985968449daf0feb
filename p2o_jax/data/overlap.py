"""Decontamination: which questions share 13 words in a row with a benchmark's, or, being
shorter, all of their words.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from p2o_jax.types import Question

N = 13
_WORD = re.compile(r"\w+")
Gram = tuple[str, ...]


def grams(text: str, n: int = N) -> Iterator[Gram]:
    """The runs of n words of a text, in lower case and without punctuation; all of its words if
    it has fewer.
    """
    words = _WORD.findall(text.lower())
    yield from (tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1)))


class Index:
    """The word runs of some benchmarks' questions."""

    def __init__(self, benchmarks: Mapping[str, Sequence[Question]]):
        self._where: dict[Gram, list[tuple[str, str]]] = {}
        for name, questions in benchmarks.items():
            for question in questions:
                for gram in dict.fromkeys(grams(question.text)):
                    self._where.setdefault(gram, []).append((name, question.id))
        self._where.pop((), None)  # questions without a word

    def overlaps(self, text: str) -> dict[tuple[str, str], str]:
        """(benchmark, question id) of all that the text overlaps with, each with the first words
        that it shares.
        """
        found: dict[tuple[str, str], str] = {}
        for gram in grams(text):
            for where in self._where.get(gram, ()):
                found.setdefault(where, " ".join(gram))
        return found


def report(
    index: Index, names: Iterable[str], texts: Mapping[str, str]
) -> tuple[dict[str, dict[str, int]], list[dict[str, str]]]:
    """For each benchmark how many texts overlap with it and how many of its questions are hit;
    and every single overlap.
    """
    found = [
        {"id": name, "benchmark": benchmark, "question_id": question_id, "words": words}
        for name, text in texts.items()
        for (benchmark, question_id), words in index.overlaps(text).items()
    ]
    counts = {
        benchmark: {
            "questions": len({row["id"] for row in found if row["benchmark"] == benchmark}),
            "benchmark_questions": len(
                {row["question_id"] for row in found if row["benchmark"] == benchmark}
            ),
        }
        for benchmark in names
    }
    return counts, found
