"""Checks reference answers before a run: would a response that gives one be right?"""

import re
from collections.abc import Sequence

from p2o_jax.config.reward_terms import compares_answers
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.types import Question

SENTENCE_WORDS = 4
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_NAME = re.compile(r"[A-Za-z][A-Za-z' ,.-]{2,}")


def notices(scorer: Scorer, questions: Sequence[Question]) -> list[str]:
    """A line for each kind of reference answer that responses will hardly match.

    Empty if nothing is compared with reference answers.
    """
    if not compares_answers(scorer.cfg.fn):
        return []
    answers = [q.answer for q in questions if not q.scorer]
    lines = []
    if bad := scorer.verifier.self_check(answers):
        lines.append(
            f"{len(bad)} reference answers do not verify against themselves, e.g. {_shown(bad)}: a"
            " response that gives one is wrong"
        )
    texts = [answer for answer in answers if is_text(answer)]
    if texts and scorer.cfg.kind == "math":
        lines.append(
            f"{len(texts)} of {len(answers)} reference answers ({len(texts) / len(answers):.0%})"
            f" are text, not mathematics, e.g. {_shown(texts)}: only a box with the same text is"
            " right"
        )
    return lines


def is_text(answer: str) -> bool:
    """Whether the grader can only compare the answer as text: a name, or a sentence."""
    plain = _COMMAND.sub(" ", answer).replace("{", " ").replace("}", " ").strip()
    return bool(_NAME.fullmatch(plain)) or len(_WORD.findall(plain)) >= SENTENCE_WORDS


def _shown(answers: Sequence[str]) -> str:
    return ", ".join(repr(a[:60]) for a in dict.fromkeys(answers[:5]))
