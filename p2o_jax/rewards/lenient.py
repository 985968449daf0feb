r"""A second, lenient grader for evaluation, in the manner of the Qwen2.5-Math suite: answers
outside a box count, too.

It takes the first of these that a response has: the suite's "final answer is $...$. I hope", the
last box, what follows the last "answer is", the last number. What is then equal says
`lenient_equal`. Training never uses it: its rewards can be had without answering.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Self

from p2o_jax import config
from p2o_jax.rewards import normalize
from p2o_jax.rewards.boxed import last_boxed
from p2o_jax.rewards.pool import Pool
from p2o_jax.rewards.verify import MAX_ANSWER_CHARS, num_workers
from p2o_jax.types import Status

JUDGE = "p2o_jax.rewards.lenient_equal:equal"
_PHRASE = re.compile(r"answer is\s*:?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)|\n")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_STATUSES: dict[str, Status] = {"correct": "correct", "wrong": "wrong", "time_out": "time_out"}


class Grade(NamedTuple):
    answer: str  # as extracted; empty: none was found
    status: Status


class LenientGrader:
    """A context manager whose `grade` judges responses, in worker processes with deadlines like
    the strict verifier's.
    """

    def __init__(self, cfg: config.RewardConfig):
        self._pool = Pool(num_workers(cfg), cfg.timeout_s, JUDGE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @property
    def counts(self) -> Counter[str]:
        return self._pool.counts

    def grade(self, responses: Sequence[str], answers: Sequence[str]) -> list[Grade]:
        """A grade per response, in order; equal pairs are judged once."""
        found = [extract(response) for response in responses]
        pairs = {
            (f, a): None
            for f, a in zip(found, answers, strict=True)
            if f and len(f) <= MAX_ANSWER_CHARS
        }
        known: dict[tuple[str, str], Status] = {
            pair: "correct" for pair in pairs if normalize.equal(*pair)
        }
        asked = [pair for pair in pairs if pair not in known]
        known |= {
            pair: _STATUSES.get(r, "error")
            for pair, r in zip(asked, self._pool.run(asked) if asked else [], strict=True)
        }
        return [
            Grade(f, known.get((f, a), "wrong") if f else "no_answer")
            for f, a in zip(found, answers, strict=True)
        ]


def extract(response: str) -> str:
    """The final answer of a response, boxed or not; empty if there is none."""
    _, suite, after = response.rpartition("final answer is $")
    if suite and (end := after.find("$. I hope")) >= 0:
        return after[:end].strip()
    if (content := last_boxed(response)) is not None:
        return content
    phrases = list(_PHRASE.finditer(response))
    if phrases:
        rest = response[phrases[-1].end() :]
        end = _SENTENCE_END.search(rest.lstrip())
        return (rest.lstrip()[: end.start()] if end else rest).strip(" $.:")
    numbers = _NUMBER.findall(response.replace(",", ""))
    return numbers[-1] if numbers else ""
