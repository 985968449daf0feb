r"""The leak guard: whether a template reveals a question that it was written from.

Answers are recognized as the graders recognize them: `1,234`, `\text{1234}` and 1234 are the same,
and so are `\dfrac{1}{2}` and 0.5.
"""

import re
from collections import Counter
from collections.abc import Sequence, Set
from typing import NamedTuple

from p2o_jax.rewards import normalize
from p2o_jax.rewards.boxed import last_boxed
from p2o_jax.types import Question

NGRAM = 8  # consecutive words that a template may not share with a question of its minibatch
MIN_CHARS = 3  # of an answer outside a box: shorter ones mean nothing
_BOILERPLATE_QUESTIONS = 4  # in fewer questions, shared words are no sign of boilerplate

_BOX = r"\boxed"
_SPACES = re.compile(r"[ \t\r\n]+")
# Plain numbers in normalized words; `normalize.canonical` says which of them are the same.
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_SCALE = r"/[0-9]+|[eE][+-]?[0-9]+| ?(?:\\times|\\cdot|\*) ?10\^(?:\{[+-]?[0-9]+\}|[0-9]+)"
_FRACTION = r"[0-9]*\\frac\{-?[0-9]+\}\{[0-9]+\}"
_NUMBER = re.compile(rf"(?<![\w.])-?(?:{_FRACTION}|(?:{_DECIMAL})(?:{_SCALE})?)(?!\w|[.,][0-9])")


def leaks(
    template: str,
    minibatch: Sequence[Question],
    common: Set[tuple[str, ...]] = frozenset(),
    given: str = "",
) -> bool:
    """Whether the template reveals a question that it was written from.

    It does if it contains a question's reference answer, either boxed or, from three characters on,
    standing alone (spaces and case are ignored), or eight consecutive words of the question that
    are not in `common`. What `given` shows already, the template that the phase began with and this
    one descends from, is not revealed: worked examples are full of numbers.
    """
    grams, shown, before = ngrams(template) - ngrams(given), _shown(template), _shown(given)
    return any(
        grams & (ngrams(q.text) - common) or (shown.holds(q.answer) and not before.holds(q.answer))
        for q in minibatch
    )


class _Shown(NamedTuple):
    """What a template shows: as it is, normalized, and the canonical forms of boxes and numbers."""

    template: str
    normalized: str
    boxes: Set[str]
    numbers: Set[str]

    def holds(self, answer: str) -> bool:
        bare, canonical = normalize.normalize(answer), _canonical(answer)
        if not bare:
            return False
        return (
            canonical in self.boxes
            or _stands_alone(self.template, answer.strip())
            or _stands_alone(self.normalized, bare)
            or (len(bare) >= MIN_CHARS and canonical in self.numbers)
        )


def _shown(template: str) -> _Shown:
    boxes = [last_boxed(_BOX + part) for part in template.split(_BOX)[1:]]
    # word by word: in the whole text, spaces beside symbols would be lost
    normalized = " ".join(map(normalize.normalize, _SPACES.split(template)))
    numbers = {number for number in _NUMBER.findall(normalized) if len(number) >= MIN_CHARS}
    return _Shown(
        template,
        normalized,
        set(map(_canonical, filter(None, boxes))),
        set(map(_canonical, numbers)),
    )


def _canonical(answer: str) -> str:
    return normalize.canonical(answer).casefold()


def _stands_alone(text: str, answer: str) -> bool:
    pieces = re.findall(r"\w+|[^\w\s]", answer)
    if len(answer) < MIN_CHARS or not pieces:
        return False
    pattern = re.escape(pieces[0])
    for before, piece in zip(pieces, pieces[1:], strict=False):
        both_words = before[-1].isalnum() and piece[0].isalnum()
        pattern += (r"\s+" if both_words else r"\s*") + re.escape(piece)
    alone = r"(?<!\w)(?<!\d[.,])" + pattern + r"(?!\w)(?![.,]\d)"
    return re.search(alone, text, re.IGNORECASE) is not None


def ngrams(text: str) -> set[tuple[str, ...]]:
    """Returns every run of eight words in the text, without case and punctuation."""
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}


def common_ngrams(questions: Sequence[Question]) -> frozenset[tuple[str, ...]]:
    """Returns the n-grams that more than half of the questions share: the data set's wording, which
    reveals nothing.
    """
    if len(questions) < _BOILERPLATE_QUESTIONS:
        return frozenset()
    counts = Counter(gram for question in questions for gram in ngrams(question.text))
    return frozenset(gram for gram, count in counts.items() if 2 * count > len(questions))
