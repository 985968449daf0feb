"""The path from question to verdict with a sampler in plain Python: order, overlap, errors."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from p2o_jax.rollout.engine import Work
from p2o_jax.rollout.pipeline import RolloutPipeline
from p2o_jax.runtime.console import Reporter
from p2o_jax.types import Completion, Question, SamplingParams, TemplatedQuestion, Verdict

QUESTIONS = [Question(f"q{i}", ({"role": "user", "content": f"n{i}"},), str(i)) for i in range(6)]
PROMPTS = [
    TemplatedQuestion(question, "", f"{question.id}/{g}")
    for question in QUESTIONS
    for g in range(2)
]
SAMPLING = SamplingParams(1.0, 50)


class Sampler:
    """Finishes requests in reverse order, two at a time; request i has i + 1 tokens. `between` is
    called after each pair.
    """

    def __init__(self, between=lambda: None):
        self.between, self.asked, self.work = between, [], Work()

    def stream(self, weights, requests, sampling, key):
        self.asked.append(requests)
        for last in reversed(range(1, len(requests), 2)):
            yield [
                (i, Completion(np.full(i + 1, i, np.int32), np.zeros(i + 1, np.float32), True))
                for i in (last, last - 1)
            ]
            self.between()


class Words:
    def render(self, question, template=""):
        return tuple(ord(c) for c in template + question.text)

    def decode(self, ids):
        return f"{ids[0]}" if ids else ""


def verify(texts, questions):
    """Accepts a response if the rollout's number, halved, is the question's."""
    return [
        Verdict(float(int(t) // 2 == int(q.answer)), 1.0, "correct")
        for t, q in zip(texts, questions, strict=True)
    ]


def pipeline(sampler, judge=verify):
    return RolloutPipeline(sampler, Words(), judge, Reporter(enabled=False))


def test_rollouts_come_in_the_order_of_the_asks_whatever_finishes_first():
    rollouts = pipeline(Sampler()).sample(None, PROMPTS, SAMPLING, None)
    assert [r.prompt for r in rollouts] == PROMPTS
    assert [r.text for r in rollouts] == [str(i) for i in range(12)]
    assert [len(r.completion.token_ids) for r in rollouts] == list(range(1, 13))
    assert all(r.verdict.answer_score == 1.0 for r in rollouts)


def test_what_is_finished_is_judged_while_the_rest_is_sampled():
    """The sampler continues only after the verifier has seen its first results, and vice versa."""
    judged, threads = threading.Event(), set()

    def wait():
        assert judged.wait(10), "nothing is judged during sampling"
        judged.clear()

    def judge(texts, questions):
        threads.add(threading.current_thread())
        judged.set()
        return verify(texts, questions)

    rollouts = pipeline(Sampler(wait), judge).sample(None, PROMPTS, SAMPLING, None)
    assert len(rollouts) == 12 and len(threads) == 1 and threading.main_thread() not in threads


def test_what_the_verifier_raises_ends_the_call_and_not_the_next_one():
    broken = [True]

    def judge(texts, questions):
        if broken[0]:
            raise RuntimeError("verifier workers do not start")
        return verify(texts, questions)

    asker = pipeline(Sampler(), judge)
    with pytest.raises(RuntimeError, match="do not start"):
        asker.sample(None, PROMPTS, SAMPLING, None)
    broken[0] = False
    assert len(asker.sample(None, PROMPTS, SAMPLING, None)) == 12


def test_expected_lengths_reach_the_sampler():
    sampler = Sampler()
    pipeline(sampler).sample(
        None,
        [replace(ask, expected_tokens=float(i)) for i, ask in enumerate(PROMPTS)],
        SAMPLING,
        None,
    )
    assert [r.expected_tokens for r in sampler.asked[0]] == [float(i) for i in range(12)]
