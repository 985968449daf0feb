"""Attention, behind one idea: a piece of attention is (output, max, sum of exponentials), and
pieces merge exactly.

`packed` is the dense reference for rows that hold several segments; `over_cache` that of one decode
step against a part of the cache. Scores and sums are float32 whatever the inputs are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NEG = -1e30  # below any score; finite, so that a row without any key gives 0 and not nan


class Partial(NamedTuple):
    """Attention over a part of the keys: normalised output, and the max and sum of exponentials
    needed to merge it.
    """

    o_BHC: jax.Array
    m_BH: jax.Array
    l_BH: jax.Array


def packed(
    q_BTHC: Float[Array, "B T H C"],
    k_BTKC: Float[Array, "B T K C"],
    v_BTKC: Float[Array, "B T K C"],
    segment_BT: Int[Array, "B T"],
) -> Float[Array, "B T H C"]:
    """Causal attention inside each segment of a row; segment 0 is padding, and its output is
    meaningless.
    """
    B, T, H, C = q_BTHC.shape
    K = k_BTKC.shape[2]
    q = q_BTHC.reshape(B, T, K, H // K, C)
    scores = (
        jnp.einsum("BTKGC,BSKC->BKGTS", q, k_BTKC, preferred_element_type=jnp.float32) * C**-0.5
    )
    visible = (segment_BT[:, :, None] == segment_BT[:, None, :]) & jnp.tri(T, dtype=bool)[None]
    probs = jax.nn.softmax(jnp.where(visible[:, None, None], scores, NEG), axis=-1).astype(
        v_BTKC.dtype
    )
    return jnp.einsum("BKGTS,BSKC->BTKGC", probs, v_BTKC).reshape(B, T, H, C)


class Cache(NamedTuple):
    """Keys and values of one layer, a row per sequence; of type int8 with a scale for each
    vector, else without.
    """

    k_RKSC: jax.Array
    v_RKSC: jax.Array
    k_scale_RKS: jax.Array | None = None
    v_scale_RKS: jax.Array | None = None


class Transposed(Cache):
    """A cache with keys as [R, K, C, S]: on CPU products with them are up to three times as fast."""

    __slots__ = ()


def empty_cache(
    rows: int, kv_heads: int, positions: int, channels: int, dtype: Any, kind: type[Cache] = Cache
) -> Cache:
    """Zeros; int8 has scales."""
    shape = (rows, kv_heads, positions, channels)
    k_shape = shape if kind is Cache else (rows, kv_heads, channels, positions)
    scales = [jnp.zeros(shape[:3])] * 2 if dtype == jnp.int8 else []
    return kind(jnp.zeros(k_shape, dtype), jnp.zeros(shape, dtype), *scales)


def num_positions(cache: Cache) -> int:
    return cache.v_RKSC.shape[2]


def by_position(change: Callable[..., jax.Array], cache: Cache, *others: Cache) -> Cache:
    """`change(axis of positions, array of the cache, array of each other)` for all that the
    cache has.
    """
    axes = (3 if isinstance(cache, Transposed) else 2, 2, 2, 2)
    columns = zip(axes, cache, *others, strict=True)
    changed: Any = (None if x is None else change(axis, x, *more) for axis, x, *more in columns)
    return type(cache)(*changed)


def stored(k_RKSC: jax.Array, v_RKSC: jax.Array, cache: Cache) -> Cache:
    """Keys and values of any positions as the cache holds them: its kind and type, quantised if
    that is int8.
    """
    if cache.k_scale_RKS is None:
        natural = Cache(k_RKSC.astype(cache.k_RKSC.dtype), v_RKSC.astype(cache.v_RKSC.dtype))
    else:
        (k, k_scale), (v, v_scale) = quantised(k_RKSC), quantised(v_RKSC)
        natural = Cache(k, v, k_scale, v_scale)
    return (
        Transposed(natural.k_RKSC.swapaxes(2, 3), *natural[1:])
        if isinstance(cache, Transposed)
        else natural
    )


def append(cache: Cache, new: Cache, position_B: Int[Array, "B"]) -> Cache:
    """The cache with `new`, made by `stored` of one position, at a position of each row; beyond
    the cache's, it is dropped.
    """
    row_B = jnp.arange(position_B.shape[0])

    def put(axis: int, x: jax.Array, y: jax.Array) -> jax.Array:
        where = (row_B, *[slice(None)] * (axis - 1), position_B)
        return x.at[where].set(y.squeeze(axis), mode="drop")

    return by_position(put, cache, new)


def quantised(x: Float[Array, "... C"]) -> tuple[Int[Array, "... C"], Float[Array, "..."]]:
    """x as int8 and the float32 scale of each vector: x ≈ int8 x scale, off by at most half a
    scale = max|x| / 254.
    """
    scale = jnp.maximum(jnp.abs(x.astype(jnp.float32)).max(axis=-1), 1e-30) / 127
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


def over_cache(
    q_BHC: Float[Array, "B H C"],
    cache: Cache,
    length_B: Int[Array, "B"],
    row_B: Int[Array, "B"] | None = None,
) -> Partial:
    """One query per row against the first `length` positions of its cache row (its own, or
    `row_B`); length 0 gives o = 0, l = 0.
    """
    B, H, C = q_BHC.shape
    if row_B is not None:
        cache = jax.tree.map(lambda x: x[row_B], cache)
    K, S = cache.v_RKSC.shape[1:3]
    visible = (jnp.arange(S)[None] < length_B[:, None])[:, None, None]
    q = q_BHC.reshape(B, K, H // K, C)
    product = "BKGC,BKCS->BKGS" if isinstance(cache, Transposed) else "BKGC,BKSC->BKGS"
    scores = (
        jnp.einsum(product, q, cache.k_RKSC.astype(q.dtype), preferred_element_type=jnp.float32)
        * C**-0.5
    )
    if cache.k_scale_RKS is not None:
        scores *= cache.k_scale_RKS[:, :, None]
    scores = jnp.where(visible, scores, NEG)
    m = scores.max(axis=-1)
    e = jnp.where(visible, jnp.exp(scores - m[..., None]), 0.0)
    total = e.sum(axis=-1)
    if cache.v_scale_RKS is not None:
        e *= cache.v_scale_RKS[:, :, None]
    o = jnp.einsum(
        "BKGS,BKSC->BKGC",
        e.astype(q.dtype),
        cache.v_RKSC.astype(q.dtype),
        preferred_element_type=jnp.float32,
    )
    o = o / jnp.maximum(total, 1e-30)[..., None]
    return Partial(o.reshape(B, H, C), m.reshape(B, H), total.reshape(B, H))


def over_rows(
    q_BTHC: Float[Array, "B T H C"], cache: Cache, visible_TS: Bool[Array, "T S"]
) -> Partial:
    """T queries per row against the same S positions of its cache row; the parts have the rows
    and queries as one axis, B * T.
    """
    B, T, H, C = q_BTHC.shape
    K, S = cache.v_RKSC.shape[1:3]
    q = q_BTHC.reshape(B, T, K, H // K, C)
    product = "BTKGC,BKCS->BTKGS" if isinstance(cache, Transposed) else "BTKGC,BKSC->BTKGS"
    scores = (
        jnp.einsum(product, q, cache.k_RKSC.astype(q.dtype), preferred_element_type=jnp.float32)
        * C**-0.5
    )
    if cache.k_scale_RKS is not None:
        scores *= cache.k_scale_RKS[:, None, :, None]
    scores = jnp.where(visible_TS.reshape(1, T, 1, 1, S), scores, NEG)
    m = scores.max(axis=-1)
    e = jnp.exp(scores - m[..., None])
    total = e.sum(axis=-1)
    if cache.v_scale_RKS is not None:
        e *= cache.v_scale_RKS[:, None, :, None]
    o = jnp.einsum(
        "BTKGS,BKSC->BTKGC",
        e.astype(q.dtype),
        cache.v_RKSC.astype(q.dtype),
        preferred_element_type=jnp.float32,
    )
    return Partial(
        (o / total[..., None]).reshape(B * T, H, C), m.reshape(B * T, H), total.reshape(B * T, H)
    )


def merge(a: Partial, b: Partial) -> Partial:
    """Attention over the keys of both parts; exactly that of one where the other has no key; o =
    0, l = 0 where neither has.
    """
    m = jnp.maximum(a.m_BH, b.m_BH)
    wa, wb = a.l_BH * jnp.exp(a.m_BH - m), b.l_BH * jnp.exp(b.m_BH - m)
    share_a, share_b = (w / jnp.maximum(wa + wb, 1e-30) for w in (wa, wb))
    return Partial(a.o_BHC * share_a[..., None] + b.o_BHC * share_b[..., None], m, wa + wb)
