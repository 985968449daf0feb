"""Sampled tokens against the exact distribution, and edge cases of the inverse-CDF search."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from p2o_jax.rollout import token_sampling
from p2o_jax.types import SamplingParams

LOGITS = np.random.default_rng(0).normal(size=23).astype(np.float32) * 1.5
DRAWS = 20000


def draws(sampling: SamplingParams, logits=LOGITS, count=DRAWS, seed=0):
    """Returns tokens and log-probs of `count` independent draws."""
    uniform = jax.random.uniform(jax.random.key(seed), (count,))
    scalars, filters = token_sampling.to_scalars(sampling), token_sampling.filters(sampling)
    token, logp = _draws(logits, uniform, scalars, filters)
    return np.asarray(token)[:, 0], np.asarray(logp)[:, 0]


@functools.partial(jax.jit, static_argnums=3)
def _draws(logits, uniform, scalars, filters):
    def draw(u):
        return token_sampling.draw(jnp.asarray(logits)[None], u[None], scalars, filters)

    return jax.vmap(draw)(uniform)


inverse_cdf = jax.jit(token_sampling.inverse_cdf)


def exact(sampling: SamplingParams, logits=LOGITS) -> np.ndarray:
    """Returns the distribution by definition: top-k, then top-p among those, then min-p."""
    p = np.exp(logits.astype(np.float64) / sampling.temperature)
    p /= p.sum()
    order = np.argsort(-p)
    kept = list(order[: sampling.top_k] if sampling.top_k else order)
    mass, nucleus = 0.0, []
    for token in kept:
        if nucleus and mass >= sampling.top_p:
            break
        nucleus.append(token)
        mass += p[token] / p[kept].sum()
    kept = [t for t in nucleus if p[t] >= sampling.min_p * p.max()]
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


def chi_square(token: np.ndarray, p: np.ndarray) -> float:
    """Returns the p-value of the counts. Rare tokens are pooled; impossible ones must not occur."""
    counts = np.bincount(token, minlength=len(p))
    assert counts[p == 0].sum() == 0
    counts, expected = counts[p > 0], p[p > 0] * len(token)
    rare = expected < 10
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return stats.chisquare(counts, expected).pvalue if len(counts) > 1 else 1.0


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(1.0, 1),
        SamplingParams(0.6, 1),
        SamplingParams(1.7, 1),
        SamplingParams(1.0, 1, top_k=5),
        SamplingParams(1.0, 1, top_k=1),
        SamplingParams(1.0, 1, top_k=1000),
        SamplingParams(1.0, 1, top_p=0.7),
        SamplingParams(1.0, 1, top_p=0.0),
        SamplingParams(1.0, 1, min_p=0.1),
        SamplingParams(0.8, 1, top_k=10, top_p=0.9, min_p=0.05),
    ],
    ids=str,
)
def test_draws_have_the_exact_distribution(sampling):
    token, logp = draws(sampling)
    assert chi_square(token, exact(sampling)) > 1e-3
    want = jax.nn.log_softmax(jnp.asarray(LOGITS) / sampling.temperature)
    # before the filters
    np.testing.assert_allclose(logp, np.asarray(want)[token], rtol=1e-5, atol=1e-6)


def test_the_chi_square_test_tells_neighbouring_settings_apart():
    token, _ = draws(SamplingParams(1.0, 1))
    assert chi_square(token, exact(SamplingParams(1.1, 1))) < 1e-6
    token, _ = draws(SamplingParams(1.0, 1, top_p=0.7))
    with pytest.raises(AssertionError):
        chi_square(token, exact(SamplingParams(1.0, 1, top_p=0.6)))


def test_greedy_takes_the_best_and_scores_it_under_the_plain_softmax():
    token, logp = draws(SamplingParams(0.0, 1, top_k=3, top_p=0.5, min_p=0.5), count=50)
    assert set(token) == {int(LOGITS.argmax())}
    np.testing.assert_allclose(
        logp, float(jax.nn.log_softmax(jnp.asarray(LOGITS)).max()), rtol=1e-6
    )


def test_rows_are_drawn_each_from_their_own_logits():
    logits = jnp.asarray(np.where(np.eye(7)[[3, 0, 6, 2]] > 0, 50.0, 0.0).astype(np.float32))
    token, logp = token_sampling.draw(
        logits,
        jnp.float32([0.1, 0.5, 0.9, 0.999]),
        token_sampling.to_scalars(SamplingParams(1.0, 1)),
        False,
    )
    assert list(np.asarray(token)) == [3, 0, 6, 2]
    np.testing.assert_allclose(logp, 0, atol=1e-6)


def test_settings_that_filter_nothing_need_no_filter():
    assert not token_sampling.filters(SamplingParams(1.0, 1)) and not token_sampling.filters(
        SamplingParams(0.0, 1, top_k=5)
    )
    assert all(
        token_sampling.filters(SamplingParams(1.0, 1, **sampling))
        for sampling in ({"top_k": 1}, {"top_p": 0.9}, {"min_p": 0.1})
    )
    sampling = token_sampling.to_scalars(SamplingParams(0.7, 1))
    uniform = jax.random.uniform(jax.random.key(1), (500,))
    logits = jnp.broadcast_to(jnp.asarray(LOGITS)[None], (500, LOGITS.size))
    for a, b in zip(
        token_sampling.draw(logits, uniform, sampling, False),
        token_sampling.draw(logits, uniform, sampling, True),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


BELOW_1 = np.nextafter(np.float32(1), np.float32(0))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 9, 16, 50, 101])
def test_inverse_cdf_is_the_plain_search(size):
    """Square sizes and others: every uniform selects the token that a plain cumulative sum
    selects.
    """
    # sums of small integers are exact
    weight = np.random.default_rng(size).integers(0, 4, size).astype(np.float32)
    weight[size // 2] = 2
    uniform = np.float32([0, 1e-9, 0.1, 0.25, 0.5, 0.5001, 0.75, 0.9, 0.999, BELOW_1])
    rows = jnp.broadcast_to(jnp.asarray(weight)[None], (len(uniform), size))
    got = np.asarray(inverse_cdf(rows, jnp.asarray(uniform)))
    want = np.searchsorted(np.cumsum(weight), uniform * weight.sum(), side="right")
    np.testing.assert_array_equal(got, np.minimum(want, np.flatnonzero(weight).max()))


@pytest.mark.parametrize("size", [2, 10, 49, 151])
def test_tokens_of_no_weight_are_never_drawn(size):
    """Weights of very different size, so that sums are rounded; zeros first, last, in whole blocks
    and isolated.
    """
    rng = np.random.default_rng(size)
    for _ in range(20):
        weight = np.where(rng.random(size) < 0.6, 0, 10.0 ** rng.uniform(-12, 0, size)).astype(
            np.float32
        )
        weight[rng.integers(size)] = 1e-3
        uniform = np.append(rng.random(60), [0, BELOW_1, 1.0]).astype(np.float32)
        token = np.asarray(
            inverse_cdf(
                jnp.broadcast_to(jnp.asarray(weight)[None], (63, size)), jnp.asarray(uniform)
            )
        )
        assert token.min() >= 0 and token.max() < size and np.all(weight[token] > 0)


def test_the_only_token_is_drawn_whatever_the_uniform():
    for size, place in ((1, 0), (10, 0), (10, 9), (50, 30)):
        weight = jnp.zeros((3, size)).at[:, place].set(1e-20)
        assert list(np.asarray(inverse_cdf(weight, jnp.float32([0, 0.5, BELOW_1])))) == [place] * 3


def test_ties_at_a_threshold_all_stay():
    """A threshold cannot separate equal scores: top-k keeps all of them rather than some by
    index.
    """
    z = jnp.float32([[1.0, 0.0, 0.0, -1.0]])
    kept = token_sampling.keep(z, token_sampling.to_scalars(SamplingParams(1.0, 1, top_k=2)))
    np.testing.assert_array_equal(
        np.asarray(kept)[0] > token_sampling.NEG, [True, True, True, False]
    )
