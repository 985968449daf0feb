r"""95 % intervals of mean scores, and of paired differences between them.

The questions are a draw from all questions of their kind, and each has k samples. A percentile
bootstrap has no width where no question is solved, and is too narrow for few questions. Here the
interval of a mean is a posterior one: a question's chance p to be answered right is drawn from
Beta(m M, (1 - m) M), its number of right samples from Binomial(k, p), and the interval holds the
mean m. M, which says how alike the questions are, is integrated out: from 0.01 (each is always or
never answered right) to 2000 (all have the same chance). For k = 1 this is the posterior of a
share. `docs/evaluation.md` has its coverage.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import betainc, betaln, ndtri, stdtrit

Limits = tuple[np.ndarray, np.ndarray]  # low [R], high [R] of R data sets

LEVEL = 0.95
# Two tails of the posterior, and both parameters of the prior of m: with them, intervals of a share
# of 30 questions cover between .935 and .978 at all whole percentages, where .95 and Jeffreys'
# prior 1/2 cover between .889 and .988.
_TAILS, _PRIOR = 0.048, 0.95
_ALIKE = np.geomspace(0.01, 2000, 16)  # M
_GRADED_STEPS = 64  # to which scores are rounded that are no counts of right samples
_REACH = 6.0  # of the grid of m around the mean, in units of the largest standard error
_CELLS = 192  # of the grid, for one sample per question
_MAX_CELLS = 1024
_CHUNK = 128  # data sets at a time


class Scores(NamedTuple):
    """Each question's mean score in [0, 1], and the number of samples that it is the mean of."""

    mean_Q: Float[np.ndarray, "Q"]
    samples: int


def of_mean(*sets: Scores) -> tuple[float, float]:
    """The interval of the mean score; of several sets, of the mean of their means."""
    means = [np.mean(s.mean_Q) for s in sets]
    return _averaged(means, [limits_of_mean(s.mean_Q[None], s.samples) for s in sets])


def of_difference(*pairs: tuple[Scores, Scores]) -> tuple[float, float]:
    """The interval of the mean difference, second minus first, of scores on the same questions; of
    several sets, of the mean of their differences.
    """
    means = [np.mean(b.mean_Q - a.mean_Q) for a, b in pairs]
    limits = [
        limits_of_difference(a.mean_Q[None], b.mean_Q[None], a.samples, b.samples) for a, b in pairs
    ]
    return _averaged(means, limits)


def limits_of_mean(mean_RQ: Float[np.ndarray, "R Q"], samples: int) -> Limits:
    """The limits of R data sets of Q questions with `samples` samples each."""
    right_RQ, steps = _counts(mean_RQ, samples)
    edge_N, log_prior_N = _grid(mean_RQ, steps)
    right_V, place = np.unique(right_RQ, return_inverse=True)
    m_N = (edge_N[1:] + edge_N[:-1]) / 2
    a, b = (m * _ALIKE for m in (m_N[:, None], 1 - m_N[:, None]))
    log_VN = np.stack([betaln(a + c, b + steps - c) - betaln(a, b) for c in right_V])
    R, V = len(mean_RQ), len(right_V)
    place_RQ = place.reshape(right_RQ.shape) + V * np.arange(R)[:, None]
    times_RV = np.bincount(place_RQ.ravel(), minlength=R * V).reshape(R, V)
    low_R, high_R = np.empty(R), np.empty(R)
    for first in range(0, R, _CHUNK):
        part = slice(first, first + _CHUNK)
        log = np.tensordot(times_RV[part], log_VN, 1) + log_prior_N[:, None]
        mass_RN = np.exp(log - log.max((1, 2), keepdims=True)).sum(2)
        low_R[part] = _quantile(mass_RN, edge_N, _TAILS / 2)
        high_R[part] = _quantile(mass_RN, edge_N, 1 - _TAILS / 2)
    mean_R = mean_RQ.mean(axis=1)
    return np.minimum(low_R, mean_R), np.maximum(high_R, mean_R)


def limits_of_difference(
    a_RQ: Float[np.ndarray, "R Q"],
    b_RQ: Float[np.ndarray, "R Q"],
    samples_a: int,
    samples_b: int,
) -> Limits:
    """The limits of the mean of b - a, of R data sets of Q questions.

    For shares these are the limits of Bonett and Price (2012): two questions are added, one that
    only a solves and one that only b does. For other scores the added differences are as large as
    the ones that are there, the limits are Student's, moved by half of Johnson's correction for
    skew, and a third of the way to those that `_from_both` finds: without it, they are too narrow
    where few questions change, but much.
    """
    d_RQ = b_RQ - a_RQ
    is_share = samples_a == samples_b == 1 and not np.any(np.abs(d_RQ) % 1)
    squares_R, changed_R = (d_RQ**2).sum(axis=1), np.count_nonzero(d_RQ, axis=1)
    added_R = (squares_R + 0.25) / (changed_R + 0.25)  # squared; 1 where nothing changes
    count = d_RQ.shape[1] + 2
    mean_R = d_RQ.sum(axis=1) / count
    variance_R = (squares_R + 2 * added_R) / count - mean_R**2
    if is_share:
        half_R = ndtri((1 + LEVEL) / 2) * np.sqrt(variance_R / count)
        low_R, high_R = mean_R - half_R, mean_R + half_R
    else:
        t = stdtrit(count - 1, (1 + LEVEL) / 2)
        pseudo = np.stack([np.sqrt(added_R), -np.sqrt(added_R)], axis=1)
        third_R = ((np.concatenate([d_RQ, pseudo], axis=1) - mean_R[:, None]) ** 3).mean(axis=1)
        middle_R = mean_R + third_R * (1 + 2 * t**2) / (12 * count * variance_R)
        half_R = t * np.sqrt(variance_R / count)
        both = _from_both(a_RQ, b_RQ, added_R, samples_a, samples_b)
        low_R = (2 * (middle_R - half_R) + both[0]) / 3
        high_R = (2 * (middle_R + half_R) + both[1]) / 3
    observed_R = d_RQ.mean(axis=1)
    return np.clip(np.minimum(low_R, observed_R), -1, 1), np.clip(
        np.maximum(high_R, observed_R), -1, 1
    )


def _from_both(
    a_RQ: np.ndarray, b_RQ: np.ndarray, added_R: np.ndarray, samples_a: int, samples_b: int
) -> Limits:
    """The limits of b - a from those of a and of b, and their correlation (Newcombe 1998).

    Args:
        a_RQ: scores.
        b_RQ: scores.
        added_R: squared difference of the pair of questions that is added to the correlation.
        samples_a: samples behind a score of a.
        samples_b: and of b.
    """
    low_a, high_a = limits_of_mean(a_RQ, samples_a)
    low_b, high_b = limits_of_mean(b_RQ, samples_b)
    mean_a, mean_b = a_RQ.mean(axis=1), b_RQ.mean(axis=1)
    off_a, off_b = a_RQ - mean_a[:, None], b_RQ - mean_b[:, None]
    scale = np.sqrt(((off_a**2).sum(1) + added_R / 2) * ((off_b**2).sum(1) + added_R / 2))
    r_R = ((off_a * off_b).sum(1) - added_R / 2) / scale

    def apart(x_R: np.ndarray, y_R: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(x_R**2 + y_R**2 - 2 * r_R * x_R * y_R, 0))

    middle_R = mean_b - mean_a
    return middle_R - apart(mean_b - low_b, high_a - mean_a), middle_R + apart(
        high_b - mean_b, mean_a - low_a
    )


def _quantile(mass_RN: np.ndarray, edge_N: np.ndarray, level: float) -> np.ndarray:
    """Where the share `level` of the mass in cells lies below; it is even within a cell."""
    below_RN = np.cumsum(mass_RN, axis=1)
    target_R = level * below_RN[:, -1]
    cell_R = (below_RN < target_R[:, None]).sum(axis=1)
    rows = np.arange(len(mass_RN))
    above_R = (below_RN[rows, cell_R] - target_R) / mass_RN[rows, cell_R]  # share of the cell
    return edge_N[cell_R + 1] - above_R * (edge_N[cell_R + 1] - edge_N[cell_R])


def _averaged(means: Sequence[np.floating], limits: Sequence[Limits]) -> tuple[float, float]:
    """The limits of the mean of independent means, whose squared distances add up."""
    mean = float(np.mean(means))
    low, high = (
        math.sqrt(sum(float(side[0] - m) ** 2 for m, side in zip(means, sides, strict=True)))
        for sides in zip(*limits, strict=True)
    )
    return mean - low / len(means), mean + high / len(means)


def _counts(mean_RQ: np.ndarray, samples: int) -> tuple[np.ndarray, int]:
    """(right samples of each question, samples); graded scores count as right samples of 64."""
    right_RQ = np.rint(mean_RQ * samples)
    if np.allclose(right_RQ, mean_RQ * samples, rtol=0, atol=1e-3):
        return right_RQ, samples
    return np.rint(mean_RQ * _GRADED_STEPS), _GRADED_STEPS


def _grid(mean_RQ: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(edges [N + 1] of cells of m, log prior mass [N]): equal in arcsin(sqrt(m)), around all
    means.
    """
    angle_R = np.arcsin(np.sqrt(mean_RQ.mean(axis=1).clip(0, 1)))
    reach = _REACH / math.sqrt(mean_RQ.shape[1])
    low, high = max(angle_R.min() - reach, 0.0), min(angle_R.max() + reach, np.pi / 2)
    cells = _CELLS * math.sqrt(steps) * (high - low) / (2 * reach)
    edge_N = np.sin(np.linspace(low, high, min(math.ceil(cells), _MAX_CELLS) + 1)) ** 2
    return edge_N, np.log(np.diff(betainc(_PRIOR, _PRIOR, edge_N)))
