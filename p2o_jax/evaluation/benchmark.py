"""Samples of a benchmark's questions, judged by both graders."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from p2o_jax.config import Config
from p2o_jax.data import benchmarks
from p2o_jax.data.sources import Loaded
from p2o_jax.evaluation.report import Sample
from p2o_jax.rewards.lenient import Grade, LenientGrader
from p2o_jax.rewards.reasoning_gym import answer_in
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.rollout import sampling_params
from p2o_jax.rollout.pipeline import RolloutPipeline
from p2o_jax.runtime import distributed
from p2o_jax.types import Rollout, TemplatedQuestion


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How often questions are sampled, and at what temperature."""

    k: int = 16
    k_large: int = 1
    temperature: float = 0.6

    def of(self, num_questions: int) -> tuple[int, float]:
        """(samples, temperature) for a set of this size; a single sample is greedy."""
        n = self.k if num_questions < benchmarks.SMALL else self.k_large
        return n, self.temperature if n > 1 else 0.0


class Judges(NamedTuple):
    """Training's scorer, and the lenient grader."""

    strict: Scorer
    lenient: LenientGrader


class BenchmarkSampler:
    """The model's answers, sampled as in training and GEPA.

    All processes get the lenient grades of process 0.
    """

    def __init__(
        self, cfg: Config, weights: Any, pipeline: RolloutPipeline, judges: Judges, key: jax.Array
    ):
        """A sampler of one policy.

        Args:
            cfg: with the sampling settings.
            weights: the policy in rollout layout.
            pipeline: samples, and has the strict verdicts.
            judges: the graders.
            key: of all samples; each one's own depends on its set, question and number.
        """
        self.cfg, self.weights, self.pipeline = cfg, weights, pipeline
        self.judges, self.key = judges, key

    def sample(self, part: Loaded, template: str, n: int, temperature: float) -> list[Sample]:
        """n samples of each question under a template, all of one question before the next."""
        prompts = [
            TemplatedQuestion(q, template, f"{part.name}/{q.id}/{i}")
            for q in part.questions
            for i in range(n)
        ]
        params = sampling_params.at(self.cfg, temperature)
        rollouts = self.pipeline.sample(self.weights, prompts, params, self.key, phase="eval")
        grades = distributed.broadcast_from_main(lambda: self._lenient(rollouts))
        return [
            Sample(rollout, Grade(*grade)) for rollout, grade in zip(rollouts, grades, strict=True)
        ]

    def _lenient(self, rollouts: Sequence[Rollout]) -> list[Any]:
        """Lenient grades; of questions with a scorer of their own, the strict ones."""
        compared = [r for r in rollouts if not r.prompt.question.scorer]
        grades = iter(
            self.judges.lenient.grade(
                [r.text for r in compared], [r.prompt.question.answer for r in compared]
            )
        )
        return [
            (answer_in(r.text) or "", r.verdict.status)
            if r.prompt.question.scorer
            else tuple(next(grades))
            for r in rollouts
        ]
