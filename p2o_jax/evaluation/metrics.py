"""What graded rollouts amount to: for held-out evaluation in training and for benchmarks."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from p2o_jax.types import Rollout

# Each metric is the mean over rollouts of this.
METRICS: Mapping[str, Callable[[Rollout], float]] = MappingProxyType(
    {
        "accuracy": lambda rollout: rollout.verdict.answer_score,
        "format": lambda rollout: rollout.verdict.format_score,
        "mean_tokens": lambda rollout: len(rollout.completion.token_ids),
        "frac_truncated": lambda rollout: not rollout.completion.stopped,
    }
)


def means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Every metric of METRICS, and `reward_means`."""
    values = {name: float(np.mean([of(r) for r in rollouts])) for name, of in METRICS.items()}
    return values | reward_means(rollouts)


def reward_means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """by_name/NAME: the mean score of each reward, if there are several."""
    by_name: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, score in rollout.verdict.by_reward:
            by_name.setdefault(name, []).append(score)
    return {f"by_name/{name}": float(np.mean(scores)) for name, scores in by_name.items()}


def question_means(values: Sequence[float], n: int) -> np.ndarray:
    """[Q]: the mean of each question's n values, which follow each other."""
    return np.array(values, np.float64).reshape(-1, n).mean(axis=1)
