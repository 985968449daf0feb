"""Which replies of the reflecting model become templates, and why others are rejected."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence, Set
from typing import Literal, NamedTuple

from p2o_jax import config
from p2o_jax.gepa import replies
from p2o_jax.types import Question, Reply

Problem = Literal["", "cut", "no_fence", "think", "too_long", "special_token", "duplicate", "empty"]
NGRAM = 8  # consecutive words that a template may not share with a question of its minibatch

_BOILERPLATE_QUESTIONS = 4  # in fewer questions, shared words are no sign of boilerplate


class Extracted(NamedTuple):
    """The text of a reply, and the reason why it may not become a template; empty if it may."""

    text: str
    problem: Problem


def extract(
    reply: Reply,
    cfg: config.GepaConfig,
    count_tokens: Callable[[str], int],
    taken: Collection[str] = (),
    spells_special: Callable[[str], bool] = lambda text: False,
) -> Extracted:
    """Returns the template in a reply, and the reason if it is rejected.

    A word directly after an opening fence that ends its line is a language tag. ▲ Any tag is
    removed; the released code knows only "markdown". ▲ With `filter_replies` the template is the
    first block after the thoughts that is not empty or taken, and unfinished thoughts, unclosed
    fences, long texts, duplicates, and texts that spell a special token of the tokenizer (such as
    the end of a turn) are rejected; without it the template is everything between the first and the
    last fence, or an unfenced reply as it is, and only empty texts are rejected, as in the released
    code.

    Args:
        reply: the reply.
        cfg: settings of GEPA.
        count_tokens: tokens of a text, as the reflecting model counts them.
        taken: existing templates; white space is ignored in comparisons.
        spells_special: whether a text spells a special token.
    """
    if not cfg.filter_replies:
        text, _ = replies.first_to_last(reply.text)
        return Extracted(text, "" if text else "empty")
    texts, unfinished = replies.templates(reply)
    if unfinished:
        return Extracted(reply.text.strip(), "cut" if reply.cut else unfinished)
    known = {normal(other) for other in taken}
    text = next((text for text in texts if text and normal(text) not in known), "")
    problem: Problem = ""
    if not text:
        text = next(filter(None, texts), "")
        problem = "duplicate" if text else "empty"
    elif count_tokens(text) > cfg.max_template_tokens:
        problem = "too_long"
    elif spells_special(text):
        problem = "special_token"
    return Extracted(text, problem)


def normal(text: str) -> str:
    """Returns the text with every run of white space replaced by one space."""
    return " ".join(text.split())


def leaks(
    template: str, minibatch: Sequence[Question], common: Set[tuple[str, ...]] = frozenset()
) -> bool:
    """Whether the template reveals a question that it was written from.

    It does if it contains a question's reference answer, either boxed or, from three characters on,
    standing alone (spaces and case are ignored), or eight consecutive words of the question that
    are not in `common`.
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
