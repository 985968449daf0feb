"""Which replies of the reflecting model become templates, and why the others do not."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence, Set
from typing import Literal, NamedTuple

from p2o_jax import config
from p2o_jax.types import Question

Problem = Literal["", "no_fence", "think", "too_long", "special_token", "duplicate", "empty"]
NGRAM = 8  # words in a row that a template may not share with a question of its minibatch

_FENCE = re.compile(r"`{3,}")
_TAG = re.compile(r"[^\s`]*[ \t]*\r?\n")
_BOILERPLATE_QUESTIONS = 4  # in fewer questions than this, shared words say nothing


class Extracted(NamedTuple):
    text: str
    problem: Problem  # empty: the text may become a template


def extract(
    reply: str,
    cfg: config.GepaConfig,
    count_tokens: Callable[[str], int],
    taken: Collection[str] = (),
    spells_special: Callable[[str], bool] = lambda text: False,
) -> Extracted:
    """The template in a reply, between its first and its last fence, with the reason if it may not
    become one.

    A word directly after the opening fence that ends its line is a language tag. ▲ Any is left out:
    the released code knows "markdown" only. `taken` are the templates that exist; white space makes
    no difference between two of them. ▲ With `filter_replies` monologues, unclosed fences,
    over-long texts, duplicates and texts that spell a special token of the tokenizer, such as the
    end of a turn, are rejected; without it only empty texts are, as in the released code, which
    takes an unfenced reply whole.
    """
    text, closed = fenced(reply)
    if not cfg.filter_replies:
        return Extracted(text, "" if text else "empty")
    problem: Problem = ""
    if "<think>" in reply:
        problem = "think"
    elif not closed:
        problem = "no_fence" if reply.strip() else "empty"
    elif not text:
        problem = "empty"
    elif count_tokens(text) > cfg.max_template_tokens:
        problem = "too_long"
    elif spells_special(text):
        problem = "special_token"
    elif normal(text) in {normal(other) for other in taken}:
        problem = "duplicate"
    return Extracted(text, problem)


def fenced(reply: str) -> tuple[str, bool]:
    """The text between the first and the last fence and True; without two fences the stripped
    reply, less a lone fence, and False.
    """
    fences = list(_FENCE.finditer(reply))
    if len(fences) > 1:
        return _untagged(reply[fences[0].end() : fences[-1].start()]), True
    bare = reply.strip()
    if bare.startswith("```"):
        return _untagged(bare.lstrip("`")), False
    return bare.rstrip("`").strip() if bare.endswith("```") else bare, False


def _untagged(content: str) -> str:
    tag = _TAG.match(content)
    return content[tag.end() if tag else 0 :].strip()


def normal(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def leaks(
    template: str, minibatch: Sequence[Question], common: Set[tuple[str, ...]] = frozenset()
) -> bool:
    """Whether the template gives away a question that it was written from.

    It does if it holds a question's reference answer, boxed, or standing alone if that has three
    characters or more (spaces and capitals make no difference), or eight words in a row of the
    question that are not in `common`.
    """
    grams = ngrams(template)
    return any(
        grams & (ngrams(q.text) - common) or _holds_answer(template, q.answer) for q in minibatch
    )


def _holds_answer(template: str, answer: str) -> bool:
    answer = answer.strip()
    pieces = re.findall(r"\w+|[^\w\s]", answer)
    if not pieces:
        return False
    pattern = re.escape(pieces[0])
    for before, piece in zip(pieces, pieces[1:], strict=False):
        both_words = before[-1].isalnum() and piece[0].isalnum()
        pattern += (r"\s+" if both_words else r"\s*") + re.escape(piece)
    if re.search(r"\\boxed\s*\{\s*" + pattern + r"\s*\}", template, re.IGNORECASE):
        return True
    alone = r"(?<!\w)(?<!\d[.,])" + pattern + r"(?!\w)(?![.,]\d)"
    return len(answer) >= 3 and re.search(alone, template, re.IGNORECASE) is not None


def ngrams(text: str) -> set[tuple[str, ...]]:
    """Every run of eight words in the text, without capitals and punctuation."""
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}


def common_ngrams(questions: Sequence[Question]) -> frozenset[tuple[str, ...]]:
    """The n-grams that more than half of the questions share: the wording of the data set, which
    gives nothing away.
    """
    if len(questions) < _BOILERPLATE_QUESTIONS:
        return frozenset()
    counts = Counter(gram for question in questions for gram in ngrams(question.text))
    return frozenset(gram for gram, count in counts.items() if 2 * count > len(questions))
