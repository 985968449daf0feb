"""Means over seeds with Student's intervals, alone and paired, corrected comparisons, and mean
accuracies over tokens.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

ENOUGH = 3  # the fewest seeds for a verdict
LEVEL = 0.05


class Estimate(NamedTuple):
    """A mean over n seeds, its 95 % interval by Student's t, and the p-value of a mean of 0.

    They hold with few seeds if the values are about normal. A single value has no interval.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float

    @property
    def sign(self) -> int:
        """1 or -1 if the interval is positive or negative; 0 otherwise, and with too few seeds."""
        return ((self.low > 0) - (self.high < 0)) * (self.n >= ENOUGH)


def estimate(values: Sequence[float]) -> Estimate:
    """The estimate for the values of all seeds."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return Estimate(mean, mean, mean, n, 1.0)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    if error == 0:
        return Estimate(mean, mean, mean, n, float(mean == 0))
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Estimate(mean, mean - half, mean + half, n, p)


def signs(several: Sequence[Estimate]) -> list[int]:
    """For each of several estimates 1 or -1 if it differs from 0, else 0: by Holm's correction, the
    probability that any of them is found to differ though none does is at most 5 %.

    Those of fewer than ENOUGH seeds are 0, and not counted.
    """
    tested = sorted((e.p, i) for i, e in enumerate(several) if e.n >= ENOUGH)
    result = [0] * len(several)
    for rank, (p, i) in enumerate(tested):
        if p > LEVEL / (len(tested) - rank):
            break
        result[i] = 1 if several[i].mean > 0 else -1
    return result


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
