"""Means over seeds with bootstrap intervals, alone and paired, and mean accuracies over tokens."""

import functools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

RESAMPLES = 10_000
# 97.5 % quantiles of Student's t with 1 to 9 degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
ENOUGH = 3  # the fewest seeds for an interval


class Estimate(NamedTuple):
    """A mean over n seeds, and its 95 % interval from a percentile bootstrap.

    With few seeds the interval is too narrow.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 if the interval is positive or negative; 0 otherwise, and with too few seeds."""
        return ((self.low > 0) - (self.high < 0)) * (self.n >= ENOUGH)


def estimate(values: Sequence[float]) -> Estimate:
    """The estimate for the values of all seeds; deterministic."""
    return _bootstrapped(tuple(values))


@functools.cache
def _bootstrapped(values: tuple[float, ...]) -> Estimate:
    rng, n = random.Random(0), len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(RESAMPLES))
    return Estimate(sum(values) / n, means[RESAMPLES // 40], means[-RESAMPLES // 40 - 1], n)


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of two to ten values: Student's 95 % interval, which covers with few seeds
    if the values are about normal.
    """
    n = len(values)
    mean = sum(values) / n
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = STUDENT[n - 2] * error
    return mean, mean - half, mean + half


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate:
    """The estimate of ours - theirs over the seeds that both have, paired by seed."""
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def mean_accuracy(curve: Sequence[Sequence[float]], budget: float) -> float:
    """The mean accuracy over the tokens of the budget.

    Evaluations are joined by lines; the last one is extended to the end.
    """
    points = [(min(tokens, budget), accuracy) for tokens, accuracy in curve]
    points.append((budget, points[-1][1]))
    area = sum((b - a) * (p + q) / 2 for (a, p), (b, q) in zip(points, points[1:], strict=False))
    return area / budget


def at(curve: Sequence[Sequence[float]], tokens: float) -> float:
    """The accuracy after `tokens` tokens, interpolated between evaluations."""
    before = max((p for p in curve if p[0] <= tokens), key=lambda p: p[0])
    after = min((p for p in curve if p[0] > tokens), key=lambda p: p[0], default=before)
    share = (tokens - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 0.0
    return before[1] + share * (after[1] - before[1])


def by_seed(rows: Sequence[Mapping[str, Any]], figure: str) -> dict[int, float]:
    """A figure of the row of each seed."""
    return {row["seed"]: row[figure] for row in rows}
