"""Evaluation on held-out questions: on plain prompts, unless `eval.template` keeps the best template at test time."""

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from p2o_jax import config
from p2o_jax.records import Ask, Question, Rollout, Sampling
from p2o_jax.rollout.answer import Answerer, Cost


class Evaluation:
    """The held-out questions and how they are sampled."""

    def __init__(self, questions: Sequence[Question], answerer: Answerer, cfg: config.Eval, max_new_tokens: int, key: jax.Array):
        self.questions = questions[: cfg.max_questions] if cfg.max_questions else questions
        self.answerer, self.cfg, self.key = answerer, cfg, key
        self.sampling = Sampling(cfg.temperature, max_new_tokens)

    def is_due(self, step: int) -> bool:
        """Before the first step, and every `every_steps`."""
        return bool(self.questions) and (step % self.cfg.every_steps == 0 if self.cfg.every_steps else step == 0)

    def run(self, weights: Any, best_template: str = "") -> tuple[dict[str, float], dict[str, Any], Cost]:
        """eval/* metrics, a row of evaluations.jsonl (accuracy by family, with its standard error), and the cost."""
        n = self.cfg.rollouts
        template = {"none": "", "best": best_template}[self.cfg.template]
        asks = [Ask(q, template, f"eval/{q.id}/{i}") for q in self.questions for i in range(n)]
        start = time.monotonic()
        rollouts = self.answerer.answer(weights, asks, self.sampling, self.key, phase="eval")
        values = summary(rollouts)
        by_family: dict[str, list[float]] = {}
        for r in rollouts:
            by_family.setdefault(str(r.ask.question.meta.get("family", r.ask.question.source)), []).append(r.verdict.answer_score)
        score_Q = np.array([r.verdict.answer_score for r in rollouts]).reshape(-1, n).mean(axis=1)
        row = {
            "accuracy": values["eval/accuracy"],
            "standard_error": float(score_Q.std(ddof=1) / math.sqrt(len(score_Q))) if len(score_Q) > 1 else 0.0,
            "questions": len(self.questions),
            "template": template,
            "by_family": {family: float(np.mean(scores)) for family, scores in sorted(by_family.items())},
        }
        return values, row, {**self.answerer.cost(rollouts), "seconds": time.monotonic() - start}


def summary(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """eval/* of scored rollouts."""
    return {
        "eval/accuracy": float(np.mean([r.verdict.answer_score for r in rollouts])),
        "eval/format": float(np.mean([r.verdict.format_score for r in rollouts])),
        "eval/mean_tokens": float(np.mean([len(r.completion.token_ids) for r in rollouts])),
        "eval/frac_truncated": float(np.mean([not r.completion.stopped for r in rollouts])),
    }
