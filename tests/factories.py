"""Specs, questions, rollouts and configs for tests; each test names only what it depends on."""

import dataclasses

import jax
import numpy as np

from p2o_jax import config
from p2o_jax.models import sharding
from p2o_jax.models.spec import ModelSpec
from p2o_jax.runtime.console import Reporter
from p2o_jax.types import Completion, Question, Rollout, TemplatedQuestion, Verdict


def make_spec(**changes) -> ModelSpec:
    """A Qwen3-like model of two layers, small enough to compile in a second or two."""
    tiny = ModelSpec(
        "qwen3",
        vocab=50,
        width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp=48,
        qk_norm=True,
        tied=True,
    )
    return dataclasses.replace(tiny, **changes)


def make_question(id: str = "q", content: str = "?", answer: str = "1") -> Question:
    """A question of one user message."""
    return Question(id, ({"role": "user", "content": content},), answer)


def make_completion(token_ids=(1,), logprobs=None, stopped: bool = True) -> Completion:
    """A completion of the given tokens, with log-probs of 0 unless others are given."""
    if logprobs is None:
        logprobs = np.zeros(len(token_ids))
    return Completion(np.asarray(token_ids, np.int32), np.asarray(logprobs, np.float32), stopped)


def make_rollout(
    question: Question | None = None,
    template: str = "",
    *,
    name: str = "",
    prompt_ids: tuple[int, ...] | None = None,
    plain_ids: tuple[int, ...] = (1,),
    completion: Completion | None = None,
    text: str = "",
    score: float = 1.0,
    format_score: float = 1.0,
) -> Rollout:
    """A graded rollout.

    Args:
        question: the question answered; a default one if omitted.
        template: the template it was sampled with; "" for the plain prompt.
        name: the name that seeds its sampling.
        prompt_ids: tokens of the prompt it was sampled on; `plain_ids` if omitted.
        plain_ids: tokens of the question's prompt without a template.
        completion: the response; one token if omitted.
        text: the response's text.
        score: the answer's score; anything above 0 has the status "correct".
        format_score: the score for the response's format.
    """
    return Rollout(
        TemplatedQuestion(question or make_question(), template, name),
        plain_ids if prompt_ids is None else prompt_ids,
        plain_ids,
        completion or make_completion(),
        text,
        Verdict(score, format_score, "correct" if score else "wrong"),
    )


def change_config(cfg: config.Config, **changes) -> config.Config:
    """The config with each `section__field=value` of `changes` applied, without resolving again."""
    for key, value in changes.items():
        section, field = key.split("__")
        part = dataclasses.replace(getattr(cfg, section), **{field: value})
        cfg = dataclasses.replace(cfg, **{section: part})
    return cfg


def single_device_mesh() -> jax.sharding.Mesh:
    """A mesh of the first device alone."""
    return sharding.make_mesh((1, 1, 1), devices=jax.devices()[:1])


class RecordingReporter(Reporter):
    """Keeps the lines in place of printing them."""

    def __init__(self):
        super().__init__(enabled=False)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)
