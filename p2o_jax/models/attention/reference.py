"""Reference attention, built on partial results: attention over some of the keys is (output, max,
sum of exponentials), and partial results merge exactly.

`packed` attends within the segments of packed rows; `over_cache` is one decode step against a part
of the cache. Scores and sums are float32 for any input dtype.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NEG = -1e30  # below any score; finite, so that a row without keys gives 0 and not NaN


class Partial(NamedTuple):
    """Attention over some of the keys: normalized output, and the max and sum of exponentials
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
    window: int = 0,
    soft_cap: float = 0.0,
    sink_H: Float[Array, "H"] | None = None,
) -> Float[Array, "B T H C"]:
    """Causal attention within each segment of a row. Segment 0 is padding; its output is
    meaningless.

    Args:
        q_BTHC: queries.
        k_BTKC: keys.
        v_BTKC: values.
        segment_BT: segment number of each token. The tokens of a segment are consecutive.
        window: keys that a query attends to, its own included; 0: all of its segment before it.
        soft_cap: see `capped`.
        sink_H: see `softmax`.
    """
    B, T, H, C = q_BTHC.shape
    K = k_BTKC.shape[2]
    q = q_BTHC.reshape(B, T, K, H // K, C)
    scores = (
        jnp.einsum("BTKhC,BSKC->BKhTS", q, k_BTKC, preferred_element_type=jnp.float32) * C**-0.5
    )
    visible = (segment_BT[:, :, None] == segment_BT[:, None, :]) & causal(T, window)[None]
    scores = capped(scores, soft_cap)
    probs = softmax(jnp.where(visible[:, None, None], scores, NEG), sink_H).astype(v_BTKC.dtype)
    return jnp.einsum("BKhTS,BSKC->BTKhC", probs, v_BTKC).reshape(B, T, H, C)


def causal(num_tokens: int, window: int = 0) -> Bool[Array, "T T"]:
    """Returns which keys (columns) each query attends to: itself and those before it, or of those
    the last `window`.
    """
    earlier = jnp.tri(num_tokens, dtype=bool)
    return earlier & ~jnp.tri(num_tokens, k=-window, dtype=bool) if window else earlier


def capped(scores: jax.Array, soft_cap: float) -> jax.Array:
    """Returns scores kept within a cap: cap tanh(scores / cap). A cap of 0 is none."""
    return soft_cap * jnp.tanh(scores / soft_cap) if soft_cap else scores


def softmax(scores_BKhTS: jax.Array, sink_H: jax.Array | None) -> jax.Array:
    """Returns the share of each key. A sink is a score of each head that takes a share, too, but
    has no value.
    """
    if sink_H is None:
        return jax.nn.softmax(scores_BKhTS, axis=-1)
    B, K, h, T, _ = scores_BKhTS.shape
    sink = jnp.broadcast_to(sink_H.astype(jnp.float32).reshape(1, K, h, 1, 1), (B, K, h, T, 1))
    return jax.nn.softmax(jnp.concatenate([scores_BKhTS, sink], axis=-1), axis=-1)[..., :-1]


class Cache(NamedTuple):
    """Keys and values of one layer, a row per sequence. int8 caches also have a scale per
    vector.
    """

    k_AKSC: jax.Array
    v_AKSC: jax.Array
    k_scale_AKS: jax.Array | None = None
    v_scale_AKS: jax.Array | None = None


class Transposed(Cache):
    """A cache with keys as [A, K, C, S], which makes products with them up to three times as fast
    on CPU.
    """

    __slots__ = ()


def empty_cache(
    rows: int, kv_heads: int, positions: int, channels: int, dtype: Any, kind: type[Cache] = Cache
) -> Cache:
    """Returns a cache of zeros.

    Args:
        rows: rows A.
        kv_heads: key/value heads K.
        positions: positions S.
        channels: channels per head C.
        dtype: dtype of keys and values; int8 adds scales.
        kind: the layout.
    """
    shape = (rows, kv_heads, positions, channels)
    k_shape = shape if kind is Cache else (rows, kv_heads, channels, positions)
    scales = [jnp.zeros(shape[:3])] * 2 if dtype == jnp.int8 else []
    return kind(jnp.zeros(k_shape, dtype), jnp.zeros(shape, dtype), *scales)


def num_positions(cache: Cache) -> int:
    """Returns the positions S of the cache."""
    return cache.v_AKSC.shape[2]


def by_position(change: Callable[..., jax.Array], cache: Cache, *others: Cache) -> Cache:
    """Returns the cache with `change(position axis, array, arrays of the others)` applied to each
    of its arrays.
    """
    axes = (3 if isinstance(cache, Transposed) else 2, 2, 2, 2)
    columns = zip(axes, cache, *others, strict=True)
    changed: Any = (None if x is None else change(axis, x, *more) for axis, x, *more in columns)
    return type(cache)(*changed)


def stored(k_AKSC: jax.Array, v_AKSC: jax.Array, cache: Cache) -> Cache:
    """Converts keys and values to the cache's layout and dtype, quantizing for int8."""
    if cache.k_scale_AKS is None:
        natural = Cache(k_AKSC.astype(cache.k_AKSC.dtype), v_AKSC.astype(cache.v_AKSC.dtype))
    else:
        (k, k_scale), (v, v_scale) = quantized(k_AKSC), quantized(v_AKSC)
        natural = Cache(k, v, k_scale, v_scale)
    return (
        Transposed(natural.k_AKSC.swapaxes(2, 3), *natural[1:])
        if isinstance(cache, Transposed)
        else natural
    )


def append(cache: Cache, new: Cache, position_B: Int[Array, "B"]) -> Cache:
    """Writes `new` (one position, from `stored`) at a position of each row; positions beyond the
    cache are dropped.
    """
    row_B = jnp.arange(position_B.shape[0])

    def put(axis: int, x: jax.Array, y: jax.Array) -> jax.Array:
        where = (row_B, *[slice(None)] * (axis - 1), position_B)
        return x.at[where].set(y.squeeze(axis), mode="drop")

    return by_position(put, cache, new)


def quantized(x: Float[Array, "... C"]) -> tuple[Int[Array, "... C"], Float[Array, "..."]]:
    """Returns x as int8 and a float32 scale per vector: x = int8 * scale, within half a scale =
    max|x| / 254.
    """
    scale = jnp.maximum(jnp.abs(x.astype(jnp.float32)).max(axis=-1), 1e-30) / 127
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


def over_cache(
    q_BHC: Float[Array, "B H C"],
    cache: Cache,
    length_B: Int[Array, "B"],
    row_B: Int[Array, "B"] | None = None,
    soft_cap: float = 0.0,
) -> Partial:
    """Attends with one query per row to the first `length` positions of its cache row (row b, or
    `row_B`). Length 0 gives o = 0, l = 0.

    Args:
        q_BHC: one query per row.
        cache: cache of one layer.
        length_B: positions to read.
        row_B: cache row of each query; None: row b.
        soft_cap: see `capped`.
    """
    B, H, C = q_BHC.shape
    if row_B is not None:
        cache = jax.tree.map(lambda x: x[row_B], cache)
    K, S = cache.v_AKSC.shape[1:3]
    visible = (jnp.arange(S)[None] < length_B[:, None])[:, None, None]
    q = q_BHC.reshape(B, K, H // K, C)
    product = "BKhC,BKCS->BKhS" if isinstance(cache, Transposed) else "BKhC,BKSC->BKhS"
    scores = (
        jnp.einsum(product, q, cache.k_AKSC.astype(q.dtype), preferred_element_type=jnp.float32)
        * C**-0.5
    )
    if cache.k_scale_AKS is not None:
        scores *= cache.k_scale_AKS[:, :, None]
    scores = capped(scores, soft_cap)
    scores = jnp.where(visible, scores, NEG)
    m = scores.max(axis=-1)
    e = jnp.where(visible, jnp.exp(scores - m[..., None]), 0.0)
    total = e.sum(axis=-1)
    if cache.v_scale_AKS is not None:
        e *= cache.v_scale_AKS[:, :, None]
    o = jnp.einsum(
        "BKhS,BKSC->BKhC",
        e.astype(q.dtype),
        cache.v_AKSC.astype(q.dtype),
        preferred_element_type=jnp.float32,
    )
    o = o / jnp.maximum(total, 1e-30)[..., None]
    return Partial(o.reshape(B, H, C), m.reshape(B, H), total.reshape(B, H))


def over_rows(
    q_BTHC: Float[Array, "B T H C"],
    cache: Cache,
    visible_TS: Bool[Array, "T S"],
    soft_cap: float = 0.0,
) -> Partial:
    """Attends with T queries per row to the same S positions of its cache row. Results have rows
    and queries as one axis, B * T. A query that sees none of them has a max of NEG: merged with any
    other, its result does not count.
    """
    B, T, H, C = q_BTHC.shape
    K, S = cache.v_AKSC.shape[1:3]
    q = q_BTHC.reshape(B, T, K, H // K, C)
    product = "BTKhC,BKCS->BTKhS" if isinstance(cache, Transposed) else "BTKhC,BKSC->BTKhS"
    scores = (
        jnp.einsum(product, q, cache.k_AKSC.astype(q.dtype), preferred_element_type=jnp.float32)
        * C**-0.5
    )
    if cache.k_scale_AKS is not None:
        scores *= cache.k_scale_AKS[:, None, :, None]
    scores = capped(scores, soft_cap)
    scores = jnp.where(visible_TS.reshape(1, T, 1, 1, S), scores, NEG)
    m = scores.max(axis=-1)
    e = jnp.exp(scores - m[..., None])
    total = e.sum(axis=-1)
    if cache.v_scale_AKS is not None:
        e *= cache.v_scale_AKS[:, None, :, None]
    o = jnp.einsum(
        "BTKhS,BKSC->BTKhC",
        e.astype(q.dtype),
        cache.v_AKSC.astype(q.dtype),
        preferred_element_type=jnp.float32,
    )
    return Partial(
        (o / total[..., None]).reshape(B * T, H, C), m.reshape(B * T, H), total.reshape(B * T, H)
    )


def merge(a: Partial, b: Partial) -> Partial:
    """Merges attention over two sets of keys. If one is empty, the result is exactly the other; if
    both are, o = 0 and l = 0.
    """
    m = jnp.maximum(a.m_BH, b.m_BH)
    wa, wb = a.l_BH * jnp.exp(a.m_BH - m), b.l_BH * jnp.exp(b.m_BH - m)
    share_a, share_b = (w / jnp.maximum(wa + wb, 1e-30) for w in (wa, wb))
    return Partial(a.o_BHC * share_a[..., None] + b.o_BHC * share_b[..., None], m, wa + wb)


def with_sink(a: Partial, sink_H: Float[Array, "H"] | None) -> Partial:
    """Returns attention to all keys with a sink (see `softmax`); the result is not to be merged."""
    if sink_H is None:
        return a
    sink_BH = sink_H.astype(jnp.float32)[None]
    m = jnp.maximum(a.m_BH, sink_BH)
    keys, sink = a.l_BH * jnp.exp(a.m_BH - m), jnp.exp(sink_BH - m)
    return a._replace(o_BHC=a.o_BHC * (keys / (keys + sink))[..., None])
