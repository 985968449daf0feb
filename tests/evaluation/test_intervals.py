"""Intervals of means and of paired differences: known cases, and their coverage in simulations."""

import numpy as np
import pytest
from scipy.special import betaincinv

from benchmarks.intervals import MEANS, mean_coverage, pair_coverage, share_coverage
from p2o_jax.evaluation import intervals
from p2o_jax.evaluation.intervals import Scores


def shares(solved, questions):
    return Scores((np.arange(questions) < solved).astype(float), 1)


@pytest.mark.parametrize("questions", [30, 1319])
def test_with_one_sample_the_interval_is_the_posterior_of_a_share(questions):
    """Beta(.95 + solved, .95 + unsolved), by its quantiles."""
    for solved in (1, questions // 5, questions // 2):
        a, b = solved + 0.95, questions - solved + 0.95
        expected = betaincinv(a, b, [0.024, 0.976])
        interval = intervals.of_mean(shares(solved, questions))
        assert interval == pytest.approx(tuple(expected), abs=0.02 * (expected[1] - expected[0]))


def test_no_interval_is_empty_or_leaves_the_scores():
    none, all_ = intervals.of_mean(shares(0, 30)), intervals.of_mean(shares(30, 30))
    assert none[0] == 0 and 0.08 < none[1] < 0.13
    assert all_ == pytest.approx((1 - none[1], 1 - none[0]), abs=1e-6)
    for scores in (Scores(np.array([0.4]), 1), Scores(np.array([1.0]), 1), shares(1, 1)):
        low, high = intervals.of_mean(scores)
        assert 0 <= low <= scores.mean_Q.mean() <= high <= 1 and high - low > 0.5
    same = intervals.of_difference((shares(0, 30), shares(0, 30)))
    assert same == pytest.approx((-same[1], same[1])) and 0.05 < same[1] < 0.12


def test_more_samples_narrow_the_interval_as_far_as_the_questions_are_alike():
    rng = np.random.default_rng(0)

    def width(chance_Q, samples):
        scores = Scores(rng.binomial(samples, chance_Q) / samples, samples)
        low, high = intervals.of_mean(scores)
        return high - low

    alike, apart = np.full(60, 0.5), np.repeat([0.0, 1.0], 30)
    assert width(alike, 16) == pytest.approx(width(alike, 1) / 4, rel=0.2)
    assert width(apart, 16) == pytest.approx(width(apart, 1), rel=0.1)


def test_graded_scores_have_narrow_intervals():
    score_Q = np.random.default_rng(0).beta(20, 20, 40)  # deviation .078
    low, high = intervals.of_mean(Scores(score_Q, 1))
    assert low < score_Q.mean() < high and high - low < 0.08


def test_paired_differences_are_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    difficulty = (rng.random(200) < 0.5).astype(float)
    better = np.clip(difficulty + (rng.random(200) < 0.1), 0, 1)
    a, b = Scores(difficulty, 1), Scores(better, 1)
    low, high = intervals.of_difference((a, b))
    assert 0 < low < (better - difficulty).mean() < high
    single = intervals.of_mean(a)
    assert high - low < 0.7 * (single[1] - single[0])
    assert intervals.of_difference((b, a)) == pytest.approx((-high, -low))


def test_the_difference_of_shares_by_hand():
    """Bonett and Price: 3 and 1 of 30 questions change; 4/32 and 2/32 with the added ones."""
    a = Scores(np.array([0.0] * 3 + [1.0] + [0.0] * 26), 1)
    b = Scores(np.array([1.0] * 3 + [0.0] + [0.0] * 26), 1)
    half = 1.959964 * np.sqrt((6 / 32 - (2 / 32) ** 2) / 32)
    assert intervals.of_difference((a, b)) == pytest.approx((2 / 32 - half, 2 / 32 + half))


def test_the_interval_of_a_mean_of_means_weighs_sets_alike():
    large, small = shares(1000, 2000), shares(15, 30)
    low, high = intervals.of_mean(large, small)
    half = 1.96 * 0.5 * np.sqrt(0.25 / 2000 + 0.25 / 32)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)


def test_a_share_of_30_questions_is_covered_between_93_and_98_percent():
    """Exactly, at all whole percentages. At 2 % no interval can have between .93 and .97: that the
    number solved is at most 1 has the chance .88, that it is at most 2, .978.
    """
    coverage = np.array([share_coverage(percent / 100) for percent in range(1, 100)])
    assert coverage.min() > 0.93 and coverage.max() < 0.979
    assert np.mean(coverage > 0.97) < 0.07


@pytest.mark.parametrize("model", ["same", "M = 10", "M = 2", "M = 0.5", "always or never"])
def test_means_of_16_samples_are_covered_as_often_as_they_say(model):
    rng = np.random.default_rng(0)
    coverage = [mean_coverage(mean, model, 16, 400, rng) for mean in MEANS[::2]]
    assert 0.93 < np.mean(coverage) < 0.975 and min(coverage) > 0.91  # one by one: noise of .011


@pytest.mark.parametrize("samples", [1, 16])
@pytest.mark.parametrize("model", ["same", "shared, M = 2", "unrelated, M = 2"])
def test_differences_are_covered_as_often_as_they_say(model, samples):
    rng = np.random.default_rng(0)
    cases = [(0.1, 0.1), (0.3, 0.0), (0.3, 0.2), (0.5, 0.1), (0.7, 0.1)]
    coverage = [pair_coverage(*case, model, samples, 400, rng) for case in cases]
    assert 0.93 < np.mean(coverage) < 0.975 and min(coverage) > 0.91


def test_where_few_questions_change_differences_are_covered_more_often():
    rng = np.random.default_rng(0)
    for samples in (1, 16):
        assert pair_coverage(0.03, 0.0, "shared, M = 2", samples, 200, rng) > 0.97
