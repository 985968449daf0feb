"""Means with bootstrap intervals over seeds, alone and paired; accuracy over generated tokens as
one figure.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

RESAMPLES = 10_000
ENOUGH = 3  # seeds, with fewer of which nothing is said of an interval


class Estimate(NamedTuple):
    """A mean over n seeds, and a percentile bootstrap's 95 % interval of it; with few seeds the
    interval is too narrow.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval has only positive or negative values, else 0; 0 with too
        few seeds.
        """
        return ((self.low > 0) - (self.high < 0)) * (self.n >= ENOUGH)


def estimate(values: Sequence[float]) -> Estimate:
    """Of the values of all seeds; always the same for the same values."""
    rng, n = random.Random(0), len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(RESAMPLES))
    return Estimate(sum(values) / n, means[RESAMPLES // 40], means[-RESAMPLES // 40 - 1], n)


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate:
    """Of ours - theirs over the seeds that both have, seed by seed."""
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def mean_accuracy(curve: Sequence[Sequence[float]], budget: float) -> float:
    """The mean over the budget's tokens of the accuracy at that many: evaluations joined by
    lines, the last one held to the end.
    """
    points = [(min(tokens, budget), accuracy) for tokens, accuracy in curve]
    points.append((budget, points[-1][1]))
    area = sum((b - a) * (p + q) / 2 for (a, p), (b, q) in zip(points, points[1:], strict=False))
    return area / budget


def at(curve: Sequence[Sequence[float]], tokens: float) -> float:
    """The accuracy at so many tokens, on the line between the evaluations before and after."""
    before = max((p for p in curve if p[0] <= tokens), key=lambda p: p[0])
    after = min((p for p in curve if p[0] > tokens), key=lambda p: p[0], default=before)
    share = (tokens - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 0.0
    return before[1] + share * (after[1] - before[1])


def by_seed(rows: Sequence[Mapping[str, Any]], figure: str) -> dict[int, float]:
    """A figure of each seed's row."""
    return {row["seed"]: row[figure] for row in rows}
