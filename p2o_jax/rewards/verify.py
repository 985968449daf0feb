r"""Verifiable rewards (step 3 of the algorithm).

A response is correct if its last `\boxed{}` equals the reference answer.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Self

from p2o_jax import config
from p2o_jax.rewards import normalize
from p2o_jax.rewards.boxed import final_answer
from p2o_jax.rewards.pool import Pool
from p2o_jax.types import Status, Verdict

MAX_ANSWER_CHARS = 4096  # in the box; longer content is not the answer to a math question
MATH_JUDGE = "p2o_jax.rewards.grade:math_equal"
_STATUSES: dict[str, Status] = {
    "correct": "correct",
    "wrong": "wrong",
    "time_out": "time_out",
    "error": "error",
}

Progress = Callable[[int, int], None]  # (answers judged so far, all answers)


class Verifier:
    """A context manager that compares responses with reference answers.

    The kind "exact" compares texts. The kind "math" compares texts and plain numbers before it
    calls math-verify in worker processes, which start when an answer first needs them. Their
    deadlines depend on the machine, so that only one of several hosts may judge a response.
    """

    def __init__(self, cfg: config.RewardConfig, judge: str = MATH_JUDGE):
        self.cfg = cfg
        self._pool = Pool(num_workers(cfg), cfg.timeout_s, judge)
        self._counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills the workers."""
        self._pool.close()

    @property
    def counts(self) -> Counter[str]:
        """Answers decided "fast" (in this process) and "slow" (by a worker), and `Pool.counts`."""
        return self._counts + self._pool.counts

    def verify(
        self, responses: Sequence[str], answers: Sequence[str], progress: Progress | None = None
    ) -> list[Verdict]:
        """Compares responses with reference answers. Returns a verdict per response, in order.

        The format score is 1 if `boxed.final_answer` finds an answer, with any content. The
        statuses "time_out" (no verdict before the deadline) and "error" (the worker died, or the
        reference answer is empty) score 0 and are distinct from "wrong". Boxes of more than
        MAX_ANSWER_CHARS characters are wrong. Equal pairs are judged once.
        """
        assert len(responses) == len(answers), (len(responses), len(answers))
        boxes = [final_answer(response) for response in responses]
        statuses: list[Status | None] = [
            self._at_once(box, answer) for box, answer in zip(boxes, answers, strict=True)
        ]
        slow: dict[tuple[str, ...], list[int]] = {}
        for i, (box, answer) in enumerate(zip(boxes, answers, strict=True)):
            if box is not None and statuses[i] is None:
                slow.setdefault((box, answer), []).append(i)
        num_slow = statuses.count(None)
        self._counts.update(fast=len(boxes) - num_slow, slow=num_slow)
        results = self._judge(list(slow), len(boxes) - num_slow, len(boxes), progress)
        for indices, result in zip(slow.values(), results, strict=True):
            for i in indices:
                statuses[i] = result
        if progress:
            progress(len(boxes), len(boxes))
        return [_verdict(box, status) for box, status in zip(boxes, statuses, strict=True)]

    def self_check(self, answers: Sequence[str]) -> list[str]:
        r"""The distinct reference answers that do not verify against themselves.

        Such an answer cannot be read back from a box, or nothing is left of it when spacing and
        dollar signs are removed.
        """
        return [
            answer
            for answer in dict.fromkeys(answers)
            if self._at_once(final_answer(rf"\boxed{{{answer}}}"), answer) != "correct"
        ]

    def _at_once(self, box: str | None, answer: str) -> Status | None:
        """The status if it needs no worker, else None."""
        if box is None:
            return "no_answer"
        if len(box) > MAX_ANSWER_CHARS:
            return "wrong"
        if not box:
            return "wrong"
        if self.cfg.kind == "exact":
            return "correct" if box.split() == answer.split() else "wrong"
        match normalize.equal(box, answer):
            case True:
                return "correct"
            case False:
                return "wrong"
        return None

    def _judge(
        self, pairs: Sequence[tuple[str, ...]], before: int, total: int, progress: Progress | None
    ) -> list[Status]:
        """The workers' statuses for (box, answer) pairs; reports progress as `_run` does."""
        return [_STATUSES[result] for result in self._run(pairs, before, total, progress)]

    def _run(
        self, tasks: Sequence[tuple[str, ...]], before: int, total: int, progress: Progress | None
    ) -> list[str]:
        """The workers' replies. Reports progress from `before` to `total`."""
        num_done = before

        def done() -> None:
            nonlocal num_done
            num_done += 1
            if progress:
                progress(num_done, total)

        return self._pool.run(tasks, done) if tasks else []


def _verdict(box: str | None, status: Status | None) -> Verdict:
    assert status is not None
    return Verdict(
        answer_score=float(status == "correct"), format_score=float(box is not None), status=status
    )


def num_workers(cfg: config.RewardConfig) -> int:
    """The number of worker processes: `cfg.workers`, or one per core if that is 0."""
    return cfg.workers or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
