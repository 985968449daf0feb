r"""A second, lenient grader for evaluation, modelled on the Qwen2.5-Math suite.

It also accepts answers outside a box. The answer is the first of these that a response contains:
what the strict grader reads, the suite's "final answer is $...$. I hope", the text after the last
"answer is", the last number. `lenient_equal` compares it with the reference. What the strict grader
accepts, it accepts, too. Training does not use this grader, because a policy can earn its rewards
without answering.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Self

from p2o_jax import config
from p2o_jax.rewards import normalize
from p2o_jax.rewards.boxed import after_thinking, final_answer
from p2o_jax.rewards.pool import Pool
from p2o_jax.rewards.verify import MAX_ANSWER_CHARS, num_workers
from p2o_jax.types import Status

JUDGE = "p2o_jax.rewards.lenient_equal:equal"
_PHRASE = re.compile(r"answer is\s*:?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)|\n")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_STATUSES: dict[str, Status] = {"correct": "correct", "wrong": "wrong", "time_out": "time_out"}


class Grade(NamedTuple):
    """A lenient grade of a response."""

    answer: str  # as extracted; empty if there is none
    status: Status


class LenientGrader:
    """A context manager whose `grade` judges responses.

    Like the strict verifier, it uses worker processes with deadlines.
    """

    def __init__(self, cfg: config.RewardConfig):
        self._pool = Pool(num_workers(cfg), cfg.timeout_s, JUDGE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @property
    def counts(self) -> Counter[str]:
        """Events of the worker processes, as `Pool.counts`."""
        return self._pool.counts

    def grade(self, responses: Sequence[str], answers: Sequence[str]) -> list[Grade]:
        """Returns a grade per response, in order. Equal pairs are judged once."""
        extracted = [extract(response) for response in responses]
        pairs = {
            (e, a): None
            for e, a in zip(extracted, answers, strict=True)
            if e and len(e) <= MAX_ANSWER_CHARS
        }
        known: dict[tuple[str, str], Status] = {
            (e, a): "correct" for e, a in pairs if e.split() == a.split() or normalize.equal(e, a)
        }
        asked = [pair for pair in pairs if pair not in known]
        known |= {
            pair: _STATUSES.get(r, "error")
            for pair, r in zip(asked, self._pool.run(asked) if asked else [], strict=True)
        }
        return [
            Grade(e, known.get((e, a), "wrong") if e else "no_answer")
            for e, a in zip(extracted, answers, strict=True)
        ]


def extract(response: str) -> str:
    """The final answer of a response, boxed or not; empty if there is none."""
    boxed = final_answer(response)
    text = after_thinking(response)
    if boxed is not None or text is None:
        return boxed or ""
    _, suite, after = text.rpartition("final answer is $")
    if suite and (end := after.find("$. I hope")) >= 0:
        return after[:end].strip()
    phrases = list(_PHRASE.finditer(text))
    if phrases:
        rest = text[phrases[-1].end() :].lstrip()
        end = _SENTENCE_END.search(rest)
        return (rest[: end.start()] if end else rest).strip(" $.:")
    numbers = _NUMBER.findall(text.replace(",", ""))
    return numbers[-1] if numbers else ""
