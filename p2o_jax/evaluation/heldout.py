"""Evaluation on held-out questions during training: on plain prompts, unless `eval.template`
keeps the best template at test time.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from p2o_jax import config
from p2o_jax.data.sources import Loaded
from p2o_jax.evaluation import estimates, metrics
from p2o_jax.rollout.pipeline import Cost, RolloutPipeline
from p2o_jax.types import Rollout, SamplingParams, TemplatedQuestion


class Evaluation:
    """The held-out sets and how they are sampled. The first one is the dev set, whose accuracy
    is `eval/accuracy`.
    """

    def __init__(
        self,
        sets: Sequence[Loaded],
        pipeline: RolloutPipeline,
        cfg: config.EvalConfig,
        sampling: SamplingParams,
        key: jax.Array,
    ):
        self.sets = [
            (
                part.name,
                part.questions[: cfg.max_questions] if cfg.max_questions else part.questions,
            )
            for part in sets
        ]
        self.questions = [question for _, questions in self.sets for question in questions]
        self.pipeline, self.cfg, self.sampling, self.key = pipeline, cfg, sampling, key

    def is_due(self, step: int) -> bool:
        """Before the first step, and every `every_steps`."""
        return bool(self.questions) and (
            step % self.cfg.every_steps == 0 if self.cfg.every_steps else step == 0
        )

    def run(
        self, weights: Any, best_template: str = ""
    ) -> tuple[dict[str, float], dict[str, Any], Cost]:
        """eval/* metrics, a row of evaluations.jsonl, and the cost.

        Both are the dev set's (accuracy by family, with its standard error). With several sets
        there is eval/SET/* for each, and in the row `sets`.
        """
        n = self.cfg.rollouts
        template = {"none": "", "best": best_template}[self.cfg.template]
        start = time.monotonic()
        prompts = [
            TemplatedQuestion(
                question, template, "/".join(("eval", *([name] if s else []), question.id, str(i)))
            )
            for s, (name, questions) in enumerate(self.sets)
            for question in questions
            for i in range(n)
        ]
        rollouts = self.pipeline.sample(weights, prompts, self.sampling, self.key, phase="eval")
        values: dict[str, float] = {}
        rows: dict[str, dict[str, Any]] = {}
        left = iter(rollouts)
        for name, questions in self.sets:
            own = [next(left) for _ in range(len(questions) * n)]
            rows[name] = _row(own, n)
            if not values:
                values = summary(own)
            if len(self.sets) > 1:
                values |= {
                    f"eval/{name}/{key.removeprefix('eval/')}": value
                    for key, value in summary(own).items()
                }
        row = {
            **next(iter(rows.values())),
            "template": template,
            **({"sets": rows} if len(rows) > 1 else {}),
        }
        return values, row, {**self.pipeline.cost(rollouts), "seconds": time.monotonic() - start}


def summary(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """eval/* of graded rollouts."""
    return {f"eval/{name}": value for name, value in metrics.means(rollouts).items()}


def _row(rollouts: Sequence[Rollout], n: int) -> dict[str, Any]:
    """Accuracy of n rollouts of each question, its standard error over questions, and accuracy
    by family.
    """
    by_family: dict[str, list[float]] = {}
    for r in rollouts:
        family = str(r.prompt.question.meta.get("family", r.prompt.question.source))
        by_family.setdefault(family, []).append(r.verdict.answer_score)
    score_Q = metrics.question_means([r.verdict.answer_score for r in rollouts], n)
    return {
        "accuracy": float(score_Q.mean()),
        "standard_error": estimates.standard_error(score_Q),
        "questions": len(score_Q),
        "by_family": {
            family: float(np.mean(scores)) for family, scores in sorted(by_family.items())
        },
    }
