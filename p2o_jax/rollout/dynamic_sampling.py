"""Which groups a step is trained on: those that it asked, or, as DAPO does, further ones until
all of them have an advantage.
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
# which groups of these rollouts have an advantage: bool [Q]
Useful = Callable[[Sequence[Rollout]], np.ndarray]


@dataclass(frozen=True)
class Filled:
    """The rollouts to train on, group by group, everything that was sampled in the step, and
    metrics.
    """

    trained: list[Rollout]
    made: list[Rollout]
    stats: dict[str, float] = field(default_factory=dict)


def as_asked(
    weights: Any, rollouts: list[Rollout], assignment: Assignment, step: int, key: jax.Array
) -> Filled:
    """The step's own groups, whatever they teach."""
    return Filled(rollouts, rollouts)


class DynamicSampling:
    """DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): groups without advantage are
    replaced by those of further questions.

    ▲ Further questions are the epoch's others in an order of their own for every step, a function
    of (seed, step): an epoch still asks each question once in its own turn, which is what mining
    counts, and a resumed run asks the same ones.
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
        """As many groups as `rollouts` has: with an advantage as long as there are such, in the
        order sampled, then others.

        Ends after `max_sampling_rounds`, or when the epoch has no further questions.
        """
        G = self.cfg.group_size
        made, needed, rounds = list(rollouts), len(rollouts) // G, 1
        good = list(self.useful(rollouts))
        further = self.questions.further(step)
        while sum(good) < needed and further and rounds < self.cfg.max_sampling_rounds:
            asked, further = further[: self.questions.per_step], further[self.questions.per_step :]
            fresh = self._ask(weights, asked, assignment, key)
            good += list(self.useful(fresh))
            made += fresh
            rounds += 1
        order = sorted(range(len(good)), key=lambda q: not good[q])[:needed]
        trained = [rollout for q in order for rollout in made[q * G : (q + 1) * G]]
        wasted = len(made) - sum(good[q] for q in order) * G
        return Filled(
            trained, made, {"rollout/sampling_rounds": rounds, "rollout/wasted_rollouts": wasted}
        )

    def _ask(
        self, weights: Any, questions: Sequence[Question], assignment: Assignment, key: jax.Array
    ) -> list[Rollout]:
        return self.answer(
            weights, assign.prompts_for(questions, assignment, self.cfg.group_size, "train"), key
        )
