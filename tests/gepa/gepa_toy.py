"""A toy world with known solve rates: a question asks for a letter, and a template that has the
letter as a word solves it.
"""

import dataclasses
import re
from typing import Literal

from p2o_jax import config
from p2o_jax.types import Outcome, Question, digest

LETTERS = "bcdefg"


class Killed(Exception):
    pass


def make_question(i, letters=LETTERS):
    text = f"Problem {i} asks for the letter {letters[i % len(letters)]} ."
    return Question(f"q{i:03d}", ({"role": "user", "content": text},), f"RESULT{i}")


def questions(num, letters=LETTERS):
    return [make_question(i, letters) for i in range(num)]


def settings(preset: Literal["faithful", "recommended"] = "recommended", **changes):
    cfg = config.resolve(config.Config(preset=preset)).gepa
    return dataclasses.replace(
        cfg,
        **{"dev_size": 12.0, "parents": 4, "budget": "calls", "max_metric_calls": 400, **changes},
    )


def count_tokens(text):
    return len(text.split())


def letter_of(question):
    return re.findall(r"letter (\w)", question.text)[0]


class Toy:
    """The two callables, with every call on record; `kill_at` raises in the middle of that call."""

    def __init__(self, kill_at=None, reply=None, score=None):
        self.calls, self.pairs, self.prompts = [], [], []
        self.kill_at, self.reply, self.score = kill_at, reply or self.mutate, score or self.solve

    def _record(self, kind, size):
        if len(self.calls) == self.kill_at:
            raise Killed
        self.calls.append((kind, size))

    @staticmethod
    def solve(template, question):
        return float(letter_of(question) in template.split())

    @staticmethod
    def mutate(prompt):
        template = prompt.split("```\n")[1].removesuffix("\n")
        failed = re.findall(
            r"letter (\w) \.\n\n## Generated Outputs\n[^#]*## Feedback\nThe final answer is wrong",
            prompt,
        )
        letter = failed[int(digest(prompt), 16) % len(failed)] if failed else "x"
        return (
            f"A better instruction:\n```text\n{template} {letter} {digest(prompt)[:4]}\n```\nDone."
        )

    def evaluate(self, pairs):
        self._record("evaluate", len(pairs))
        self.pairs += pairs
        scores = [self.score(template, question) for template, question in pairs]
        return [
            Outcome(score, 1.0, f"I try {template!r} on {q.id}: \\boxed{{}}")
            for score, (template, q) in zip(scores, pairs, strict=True)
        ]

    def reflect(self, prompts):
        self._record("reflect", len(prompts))
        self.prompts += prompts
        return [self.reply(prompt) for prompt in prompts]
