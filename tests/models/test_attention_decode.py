"""Attention to caches as CPUs hold and read them, against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax.models.attention import decoding, reference
from p2o_jax.models.attention.reference import Cache, Transposed

B, H, K, C, R = 17, 4, 2, 8, 20
over_cache = jax.jit(reference.over_cache, static_argnames="soft_cap")
over_spans = jax.jit(decoding.over_spans, static_argnums=0)


def make(positions, dtype=jnp.float32, seed=0):
    """Returns queries, the same cache in both layouts, ragged lengths, and rows out of order."""
    rng = np.random.default_rng(seed)
    k, v = (jnp.asarray(rng.normal(size=(R, K, positions, C)), jnp.float32) for _ in range(2))
    empty = [reference.empty_cache(R, K, positions, C, dtype, kind) for kind in (Cache, Transposed)]
    q = jnp.asarray(rng.normal(size=(B, H, C)), jnp.float32)
    lengths = np.concatenate(
        [[0, 1, positions, positions - 1], rng.integers(0, positions // 8, B - 4)]
    )
    return (
        q,
        *(reference.stored(k, v, cache) for cache in empty),
        jnp.asarray(lengths),
        jnp.asarray(rng.permutation(R)[:B]),
    )


def by_hand(q, cache, lengths, rows):
    """Computes attention with a loop over rows and heads in float64."""
    out = np.zeros((B, H, C))
    for b in range(B):
        for h in range(H):
            n, row = int(lengths[b]), int(rows[b])
            if n:
                k, v = (
                    np.asarray(x[row, h // (H // K), :n], np.float64)
                    for x in (cache.k_AKSC, cache.v_AKSC)
                )
                scores = k @ np.asarray(q[b, h], np.float64) * C**-0.5
                weights = np.exp(scores - scores.max())
                out[b, h] = weights @ v / weights.sum()
    return out


@pytest.mark.parametrize("own_rows", [True, False])
@pytest.mark.parametrize("kind", [0, 1])
def test_the_reference_by_hand(own_rows, kind):
    q, *caches, lengths, rows = make(40)
    got = over_cache(q, caches[kind], lengths, None if own_rows else rows) if not own_rows else None
    if own_rows:
        cut = jax.tree.map(lambda x: x[:B], caches[kind])
        got, rows = over_cache(q, cut, lengths), jnp.arange(B)
    np.testing.assert_allclose(
        got.o_BHC, by_hand(q, caches[0], lengths, rows), rtol=1e-5, atol=1e-6
    )
    assert np.all(got.l_BH[0] == 0) and np.all(got.m_BH[0] == reference.NEG)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
@pytest.mark.parametrize("positions", [pytest.param(512, marks=pytest.mark.slow), 600])
@pytest.mark.parametrize(("kind", "soft_cap"), [(0, 0.7), (1, 0.0)])
def test_windows_change_nothing(dtype, positions, kind, soft_cap):
    q, *caches, lengths, rows = make(positions, dtype)
    want = over_cache(q, caches[kind], lengths, rows, soft_cap=soft_cap)
    windowed = functools.partial(decoding.windowed, soft_cap=soft_cap)
    got = jax.jit(windowed)(q, caches[kind], lengths, rows)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_window_that_is_too_short_is_noticed(monkeypatch):
    q, _, cache, lengths, rows = make(512)
    monkeypatch.setattr(
        decoding.jnp, "searchsorted", lambda windows, lengths: jnp.zeros_like(lengths)
    )
    got = decoding.windowed(q, cache, lengths, rows)
    assert np.abs(got.o_BHC - over_cache(q, cache, lengths, rows).o_BHC).max() > 1e-2


def test_tiers_only_where_they_save(monkeypatch):
    """Copying windows that hold nearly all of the cache costs more than reading it: only ragged
    rows use tiers.
    """
    q, _, cache, ragged, rows = make(512)
    monkeypatch.setattr(
        decoding.lax, "switch", lambda _, windows: jax.tree.map(lambda x: x * jnp.nan, windows[0]())
    )
    assert np.isnan(decoding.windowed(q, cache, ragged, rows).o_BHC).all()
    lengths = jnp.full(B, 300)
    got, want = (
        attend(q, cache, lengths, rows).o_BHC
        for attend in (decoding.windowed, reference.over_cache)
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


SIZES = (16, 16, 8)
CACHE_OPS = decoding.CacheOps(Transposed, reference.append, reference.over_cache, True, 3)


def cut(cache):
    """Returns the cache as spans of these sizes."""
    starts = np.cumsum((0, *SIZES))
    return tuple(
        reference.by_position(
            lambda axis, x, a=a, n=n: jax.lax.slice_in_dim(x, a, a + n, axis=axis), cache
        )
        for a, n in zip(starts, SIZES, strict=False)
    )


def make_spans(dtype=jnp.float32):
    q, _, cache, lengths, rows = make(40, dtype)
    return q, jax.tree.map(lambda x: x[rows], cache), lengths


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_spans_are_one_cache(dtype):
    q, cache, lengths = make_spans(dtype)
    got = over_spans(CACHE_OPS, q, cut(cache), lengths)
    for a, b in zip(got, over_cache(q, cache, lengths), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("longest", [15, 16, 17, 32, 33])
def test_a_span_that_no_row_has_reached_is_not_read(longest):
    q, cache, lengths = make_spans()
    lengths = jnp.minimum(lengths, longest)
    spans = list(cut(cache))
    unread = sum(longest > start for start in (0, 16, 32))
    spans[unread:] = jax.tree.map(lambda x: x * jnp.nan, spans[unread:])
    got = over_spans(CACHE_OPS, q, tuple(spans), lengths)
    np.testing.assert_allclose(got.o_BHC, over_cache(q, cache, lengths).o_BHC, rtol=1e-5, atol=1e-6)
    spans[unread - 1] = jax.tree.map(lambda x: x * jnp.nan, spans[unread - 1])
    assert np.isnan(over_spans(CACHE_OPS, q, tuple(spans), lengths).o_BHC).any()


def test_old_rows_change_nothing_for_young_ones():
    """To the last bit: a rollout's text does not depend on any other."""
    q, cache, lengths = make_spans()
    young = np.asarray(lengths) < 16
    assert 5 < young.sum() < B
    among_old, alone = (
        over_spans(CACHE_OPS, q, cut(cache), n) for n in (lengths, jnp.where(young, lengths, 3))
    )
    for a, b in zip(among_old, alone, strict=True):
        assert np.array_equal(a[young], b[young])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_append_to_spans(dtype):
    _, cache, _ = make_spans(dtype)
    rng = np.random.default_rng(1)
    k, v = (jnp.asarray(rng.normal(size=(B, K, 1, C)), jnp.float32) for _ in range(2))
    new, at = (
        reference.stored(k, v, cache),
        jnp.asarray([0, 15, 16, 31, 32, 39, *rng.integers(0, 40, B - 6)]),
    )
    got, want = (
        decoding.append(CACHE_OPS, cut(cache), new, at),
        cut(reference.append(cache, new, at)),
    )
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    )


@pytest.mark.parametrize(
    ("positions", "sizes"),
    [
        (8, (8,)),
        (40, (32, 8)),
        (128, (32,) * 4),
        (200, (56, 56, 56, 32)),
        (512, (512,)),
        (4096, (4096,)),
    ],
)
def test_positions_of_spans(positions, sizes):
    assert decoding.spans_of(CACHE_OPS._replace(spans=4), positions) == sizes
    assert decoding.spans_of(CACHE_OPS._replace(spans=1), positions) == (positions,)


@pytest.mark.parametrize("kind", [Cache, Transposed])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_append_puts_a_vector_at_each_rows_position(kind, dtype):
    rng = np.random.default_rng(0)
    cache = reference.empty_cache(3, K, 6, C, dtype, kind)
    k, v = (jnp.asarray(rng.normal(size=(3, K, 1, C)), jnp.float32) for _ in range(2))
    after = reference.append(cache, reference.stored(k, v, cache), jnp.array([5, 0, 2]))
    keys = after.k_AKSC if kind is Cache else after.k_AKSC.swapaxes(2, 3)
    scale = 1.0 if dtype == jnp.float32 else after.k_scale_AKS[..., None]
    for row, position in enumerate((5, 0, 2)):
        np.testing.assert_allclose(
            (keys * scale)[row, :, position],
            k[row, :, 0],
            atol=1e-6 if dtype == jnp.float32 else 0.02,
        )
        others = np.delete(np.asarray(keys[row]), position, axis=1)
        assert not others.any()


def test_quantized_is_off_by_half_a_scale():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, C)), jnp.float32)
    held, scale = reference.quantized(x)
    assert held.dtype == jnp.int8 and np.abs(np.asarray(held)).max() == 127
    assert np.all(np.abs(held * scale[:, None] - x) <= scale[:, None] / 2 + 1e-6)
    zero, scale = reference.quantized(jnp.zeros((2, C)))
    assert not zero.any() and np.all(np.isfinite(scale))
