"""pass@k, avg@k, maj@k and intervals against hand-worked numbers, enumeration and simulation."""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest

from p2o_jax.evaluation import estimates


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 1, Fraction(1, 4)),
        (4, 1, 2, Fraction(1, 2)),
        (4, 2, 2, Fraction(5, 6)),
        (4, 2, 3, 1),
        (5, 0, 5, 0),
        (5, 5, 1, 1),
        (16, 3, 4, 1 - Fraction(13 * 12 * 11 * 10, 16 * 15 * 14 * 13)),
        (6, 1, 6, 1),
    ],
)
def test_pass_at_k_by_hand(n, c, k, expected):
    assert estimates.pass_at_k(n, c, k) == pytest.approx(float(expected), abs=1e-12)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for n in range(1, 7):
        for c in range(n + 1):
            samples = [1] * c + [0] * (n - c)
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(samples, k))
                assert estimates.pass_at_k(n, c, k) == pytest.approx(
                    sum(map(any, subsets)) / len(subsets)
                )


def test_pass_at_k_is_unbiased_where_the_share_of_k_samples_of_a_run_is_not():
    """A question with success rate p: the mean over runs of n samples is 1 - (1 - p)^k; 1 - (1 -
    c / n)^k is not.
    """
    rng, n, k, p = random.Random(0), 8, 4, 0.2
    counts = [sum(rng.random() < p for _ in range(n)) for _ in range(20_000)]
    truth = 1 - (1 - p) ** k
    assert np.mean([estimates.pass_at_k(n, c, k) for c in counts]) == pytest.approx(truth, abs=0.01)
    assert abs(np.mean([1 - (1 - c / n) ** k for c in counts]) - truth) > 0.03
    # avg@n is pass@1
    assert np.mean([estimates.pass_at_k(n, c, 1) for c in counts]) == pytest.approx(
        np.mean(counts) / n
    )


def test_ks():
    assert (
        estimates.ks(1) == [1]
        and estimates.ks(6) == [1, 2, 4, 6]
        and estimates.ks(16) == [1, 2, 4, 8, 16]
    )


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["a", "a", "b"], [1, 1, 0], 1.0),
        (["a", "a", "b"], [0, 0, 1], 0.0),
        (["a", "b"], [1, 0], 0.5),  # a tie: as often right as not
        ([None, None, "b"], [0, 0, 1], 1.0),  # no answer is no vote
        ([None, None], [0, 0], 0.0),
        (["a", "b", "c", "c"], [1, 1, 0, 0], 0.0),
    ],
)
def test_majority_by_hand(answers, correct, expected):
    assert estimates.majority(answers, correct) == expected


def test_standard_error_by_hand():
    assert estimates.standard_error(np.array([0.0, 1.0])) == pytest.approx(0.5)
    assert estimates.standard_error(np.array([1.0])) is None


def test_the_interval_of_a_mean_is_wilson_s_for_zeros_and_ones_and_student_s_for_others():
    """By hand: 30 right of 100; four scores of mean .5 and deviation .2582 (t of .975 with 3
    degrees is 3.1824).
    """
    right = np.array([1.0] * 30 + [0.0] * 70)
    assert estimates.interval_of_mean(
        0.3, estimates.standard_error(right), 100
    ) == estimates.wilson(0.3, 100)
    graded = np.array([0.2, 0.4, 0.6, 0.8])
    low, high = estimates.interval_of_mean(0.5, estimates.standard_error(graded), 4)
    assert low == pytest.approx(0.5 - 3.1824 * 0.2582 / 2, abs=1e-4) and high == pytest.approx(
        0.5 + 3.1824 * 0.2582 / 2, abs=1e-4
    )
    assert estimates.interval_of_mean(0.9, 0.1, 3)[1] == 1.0, "scores are no larger"
    assert (
        estimates.interval_of_mean(0.0, 0.0, 8) == estimates.wilson(0.0, 8)
        and estimates.wilson(0.0, 8)[1] > 0.3
    )
    assert estimates.interval_of_mean(0.4, 0.0, 1) == (0.0, 1.0)
    assert estimates.interval_of_mean(0.4, None, 1) == (0.0, 1.0)
    assert estimates.interval_of_mean(1.0, None, 1) == estimates.wilson(1.0, 1)
    assert estimates.interval_of_mean(0.4, None, 50) == estimates.wilson(0.4, 50)


def test_the_interval_of_graded_scores_covers_their_mean_and_is_narrower_than_wilson_s():
    rng = np.random.default_rng(0)
    score_RQ = rng.beta(4.0, 4.0, (2000, 40))
    intervals = [
        estimates.interval_of_mean(float(s.mean()), estimates.standard_error(s), 40)
        for s in score_RQ
    ]
    assert 0.93 < np.mean([low < 0.5 < high for low, high in intervals]) < 0.97
    assert np.mean([high - low for low, high in intervals]) < 0.4 * (
        estimates.wilson(0.5, 40)[1] - estimates.wilson(0.5, 40)[0]
    )
