"""Scores responses as `config.reward` says (step 3 of the algorithm).

The score is that of the answer: its comparison with the reference by `verify`, or, for questions of
reasoning-gym, that library's. `config.reward.fn` replaces it by a custom function, or by a weighted
mean of several rewards.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Self

from p2o_jax import config
from p2o_jax.config.reward_terms import (
    CORRECT,
    RewardTerm,
    compares_answers,
    custom_functions,
    reward_terms,
)
from p2o_jax.rewards import own, reasoning_gym
from p2o_jax.rewards.pool import Pool
from p2o_jax.rewards.verify import Verifier, num_workers
from p2o_jax.types import Question, Status, Verdict

SHIPPED = "p2o_jax.rewards.examples:"
_FAILURES: dict[str, Status] = {"time_out": "time_out", "error": "error"}
_WHY = {"time_out": "", "error": "the worker died"}


class Part(NamedTuple):
    """What one reward says about a response."""

    score: float
    status: Status = "correct"
    note: str = ""


class Scorer:
    """A context manager whose `judge` scores responses.

    Functions, scorers of libraries and math-verify run in worker processes, which start when a
    response first needs them. Their deadlines depend on the machine, so that only one of several
    hosts may judge a response.
    """

    def __init__(self, cfg: config.RewardConfig):
        self.cfg = cfg
        self.terms = reward_terms(cfg.fn)
        self.custom = custom_functions(cfg.fn)
        self.verifier = Verifier(cfg)
        size, timeout_s = num_workers(cfg), cfg.timeout_s
        self._functions = Pool(size, timeout_s, own.judge_name(self.custom), cfg.env)
        self._library = Pool(size, timeout_s + reasoning_gym.SETUP_S, reasoning_gym.SCORE)
        self._counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills the workers."""
        for part in (self.verifier, self._functions, self._library):
            part.close()

    @property
    def counts(self) -> Counter[str]:
        """As `Verifier.counts`, of all workers."""
        return self._counts + self.verifier.counts + self._functions.counts + self._library.counts

    def can_judge(self, question: Question) -> bool:
        """Whether responses to the question can be judged: a comparison needs an answer."""
        return bool(question.answer or question.scorer) or not compares_answers(self.cfg.fn)

    def problems(self) -> list[str]:
        """A line if a custom function cannot be called, or per variable of `env` that is not set.

        The functions are looked up in a worker, not in this process.
        """
        if missing := _env_problems(self.cfg):
            return missing
        try:
            replies = self._functions.run([(own.PROBE,)]) if self.custom else []
        except RuntimeError as e:
            replies = [str(e)]
        return [f"config.reward.fn={self.cfg.fn}: {reply}" for reply in replies if reply]

    def judge(self, responses: Sequence[str], questions: Sequence[Question]) -> list[Verdict]:
        """Returns a verdict per response, in order. Equal pairs are judged once."""
        assert len(responses) == len(questions), (len(responses), len(questions))
        answers: list[Verdict | None] = [None] * len(responses)
        if len(self.custom) < len(self.terms):
            answers[:] = self._answers(responses, questions)
        custom = self._custom(responses, questions)
        return [self._verdict(*pair) for pair in zip(answers, custom, strict=True)]

    def _verdict(self, answer: Verdict | None, custom: Sequence[Part]) -> Verdict:
        """The verdict of all rewards together; one that fails makes the score 0."""
        left = iter(custom)
        parts = [next(left) if t.is_custom else _built_in(t, answer) for t in self.terms]
        statuses = [part.status for part in parts]
        score = _mean(self.terms, [part.score for part in parts])
        status: Status = "correct" if score > self.cfg.success_above else "wrong"
        if failed := [s for s in statuses if s in _FAILURES]:
            score, status = 0.0, _FAILURES[failed[0]]
        elif status == "wrong" and "no_answer" in statuses:
            status = "no_answer"
        format_score = answer.format_score if answer else 1.0
        if len(parts) == 1:
            return Verdict(score, format_score, status, parts[0].note)
        note = "\n".join(_line(*pair) for pair in zip(self.terms, parts, strict=True))
        by_name = tuple((t.name, part.score) for t, part in zip(self.terms, parts, strict=True))
        return Verdict(score, format_score, status, note, by_name)

    def _answers(self, responses: Sequence[str], questions: Sequence[Question]) -> list[Verdict]:
        """Verdicts on the answers alone."""
        verdicts: list[Verdict | None] = [None] * len(responses)
        by_library = [i for i, q in enumerate(questions) if q.scorer]
        compared = [i for i, q in enumerate(questions) if not q.scorer]
        judged = [
            *self.verifier.verify(
                [responses[i] for i in compared], [questions[i].answer for i in compared]
            ),
            *self._by_library(
                [responses[i] for i in by_library], [questions[i] for i in by_library]
            ),
        ]
        for i, verdict in zip((*compared, *by_library), judged, strict=True):
            verdicts[i] = verdict
        return [v for v in verdicts if v is not None]

    def _by_library(self, responses: Sequence[str], questions: Sequence[Question]) -> list[Verdict]:
        """Verdicts of reasoning-gym's scorers."""
        answers = [reasoning_gym.answer_in(response) for response in responses]
        replies = iter(
            self._replies(
                self._library,
                [
                    reasoning_gym.request(question, answer)
                    for question, answer in zip(questions, answers, strict=True)
                    if answer is not None
                ],
            )
        )
        return [
            Verdict(0.0, 0.0, "no_answer") if answer is None else self._graded(next(replies))
            for answer in answers
        ]

    def _graded(self, reply: str) -> Verdict:
        part = _failure(reply) or _part(*json.loads(reply))
        wrong = part.status == "correct" and part.score <= self.cfg.success_above
        return Verdict(part.score, 1.0, "wrong" if wrong else part.status, part.note)

    def _custom(
        self, responses: Sequence[str], questions: Sequence[Question]
    ) -> list[Sequence[Part]]:
        """The replies of the custom functions to each response."""
        if not self.custom:
            return [()] * len(responses)
        requests = [
            own.request(question, response)
            for question, response in zip(questions, responses, strict=True)
        ]
        columns: list[Sequence[Part]] = []
        for reply in self._replies(self._functions, requests):
            failure = _failure(reply)
            columns.append(
                [failure] * len(self.custom)
                if failure
                else [_part(*values) for values in json.loads(reply)]
            )
        return columns

    def _replies(self, pool: Pool, requests: Sequence[str]) -> list[str]:
        """The workers' replies; equal requests are sent once."""
        distinct = list(dict.fromkeys(requests))
        self._counts.update(slow=len(distinct), fast=len(requests) - len(distinct))
        replies = pool.run([(request,) for request in distinct]) if distinct else []
        by_request = dict(zip(distinct, replies, strict=True))
        return [by_request[request] for request in requests]


def untrusted(run: config.RewardConfig, where: str) -> list[str]:
    """A line if a reward config from a run directory would run code outside this package.

    A run directory is data and may come from an untrusted source, as may the module that it names.
    `where` is the file that the config was read from.
    """
    code = [name for name in custom_functions(run.fn) if not name.startswith(SHIPPED)]
    if not code:
        return []
    env = f" with the environment variables {', '.join(run.env)}" if run.env else ""
    return [
        f"{where}: config.reward.fn={run.fn} would run this code{env}; if you trust it, add"
        " --allow-reward-fn, or name a function on the command line with --config.reward.fn"
    ]


def _env_problems(cfg: config.RewardConfig) -> list[str]:
    return [
        f"config.reward.env: the environment variable {name} is not set"
        for name in cfg.env
        if name not in os.environ
    ]


def _failure(reply: str) -> Part | None:
    """What the pool's "time_out" or "error" stands for; None for any other reply."""
    return Part(0.0, _FAILURES[reply], _WHY[reply]) if reply in _FAILURES else None


def _part(score: float, note: str, failed: bool) -> Part:
    return Part(score, "error" if failed else "correct", note)


def _built_in(term: RewardTerm, answer: Verdict | None) -> Part:
    assert answer is not None
    if term.function == CORRECT:
        return Part(answer.answer_score, answer.status, answer.note)
    return Part(answer.format_score)


def _mean(terms: Sequence[RewardTerm], scores: Sequence[float]) -> float:
    if len(terms) == 1:
        return scores[0]
    weighted = [t.weight * score for t, score in zip(terms, scores, strict=True)]
    return min(math.fsum(weighted) / math.fsum(t.weight for t in terms), 1.0)


def _line(term: RewardTerm, part: Part) -> str:
    return f"{term.name}: {part.score:.2f}" + (f" ({part.note})" if part.note else "")
