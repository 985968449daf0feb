"""Selects the groups that a step trains on: those asked, or, as in DAPO, further ones until all
have an advantage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from p2o_jax.config import RolloutConfig
from p2o_jax.data.questions import Questions
from p2o_jax.p2o import assign
from p2o_jax.state import Assignment
from p2o_jax.types import Question, Rollout

# (weights, prompts, key) -> a rollout for each prompt
Answer = Callable[[Any, Sequence[Any], jax.Array], list[Rollout]]
# rollouts -> whether each group has an advantage: bool [Q]
Useful = Callable[[Sequence[Rollout]], np.ndarray]


@dataclass(frozen=True)
class Filled:
    """Rollouts to train on, group by group; all rollouts sampled in the step; metrics."""

    trained: list[Rollout]
    sampled: list[Rollout]
    stats: dict[str, float] = field(default_factory=dict)


def as_asked(
    weights: Any, rollouts: list[Rollout], assignment: Assignment, step: int, key: jax.Array
) -> Filled:
    """Returns the step's own groups, whether or not they have an advantage.

    Args:
        weights: unused, as are the arguments after `rollouts`; the signature is that of
            `DynamicSampling.__call__`.
        rollouts: the step's own groups.
        assignment: unused.
        step: unused.
        key: unused.
    """
    return Filled(rollouts, rollouts)


class DynamicSampling:
    """DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): groups without advantage are
    replaced by groups of further questions.

    ▲ Further questions are the epoch's other questions, in an order that is a function of (seed,
    step). Each question is still asked once per epoch in its regular step, which is what mining
    counts, and a resumed run asks the same questions.
    """

    def __init__(self, answer: Answer, questions: Questions, cfg: RolloutConfig, useful: Useful):
        self.answer, self.questions, self.cfg, self.useful = answer, questions, cfg, useful

    def __call__(
        self,
        weights: Any,
        rollouts: list[Rollout],
        assignment: Assignment,
        step: int,
        key: jax.Array,
    ) -> Filled:
        """Returns as many groups as `rollouts` holds: those with an advantage first, in the order
        sampled, then others.

        Stops after `max_sampling_rounds`, or when the epoch has no further questions.

        Args:
            weights: params in rollout layout.
            rollouts: the step's own groups.
            assignment: templates of hard questions.
            step: the policy step, which selects further questions.
            key: key for sampling them.
        """
        G = self.cfg.group_size
        sampled, needed, rounds = list(rollouts), len(rollouts) // G, 1
        good = list(self.useful(rollouts))
        further = self.questions.further(step)
        while sum(good) < needed and further and rounds < self.cfg.max_sampling_rounds:
            batch, further = further[: self.questions.per_step], further[self.questions.per_step :]
            fresh = self._ask(weights, batch, assignment, key)
            good += list(self.useful(fresh))
            sampled += fresh
            rounds += 1
        order = sorted(range(len(good)), key=lambda q: not good[q])[:needed]
        trained = [rollout for q in order for rollout in sampled[q * G : (q + 1) * G]]
        wasted = len(sampled) - sum(good[q] for q in order) * G
        return Filled(
            trained, sampled, {"rollout/sampling_rounds": rounds, "rollout/wasted_rollouts": wasted}
        )

    def _ask(
        self, weights: Any, questions: Sequence[Question], assignment: Assignment, key: jax.Array
    ) -> list[Rollout]:
        return self.answer(
            weights, assign.prompts_for(questions, assignment, self.cfg.group_size, "train"), key
        )
