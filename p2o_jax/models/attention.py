"""Attention, behind one idea: a piece of attention is (output, max, sum of exponentials), and pieces merge exactly.

`packed` is the dense reference for rows that hold several segments; `over_cache` that of one decode step against a part of the
cache. Scores and sums are float32 whatever the inputs are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NEG = -1e30  # below any score; finite, so that a row without any key gives 0 and not nan


class Partial(NamedTuple):
    """Attention over a part of the keys: normalised output, and the max and sum of exponentials needed to merge it."""

    o_BHC: jax.Array
    m_BH: jax.Array
    l_BH: jax.Array


def packed(
    q_BTHC: Float[Array, "B T H C"],
    k_BTKC: Float[Array, "B T K C"],
    v_BTKC: Float[Array, "B T K C"],
    segment_BT: Int[Array, "B T"],
) -> Float[Array, "B T H C"]:
    """Causal attention inside each segment of a row; segment 0 is padding, and its output is meaningless."""
    B, T, H, C = q_BTHC.shape
    K = k_BTKC.shape[2]
    q = q_BTHC.reshape(B, T, K, H // K, C)
    scores = jnp.einsum("BTKGC,BSKC->BKGTS", q, k_BTKC, preferred_element_type=jnp.float32) * C**-0.5
    visible = (segment_BT[:, :, None] == segment_BT[:, None, :]) & jnp.tri(T, dtype=bool)[None]
    probs = jax.nn.softmax(jnp.where(visible[:, None, None], scores, NEG), axis=-1).astype(v_BTKC.dtype)
    return jnp.einsum("BKGTS,BSKC->BTKGC", probs, v_BTKC).reshape(B, T, H, C)


class Cache(NamedTuple):
    """Keys and values of one layer, a row per sequence; of type int8 with a scale for each vector, else without."""

    k_RKSC: jax.Array
    v_RKSC: jax.Array
    k_scale_RKS: jax.Array | None = None
    v_scale_RKS: jax.Array | None = None


def over_cache(q_BHC: Float[Array, "B H C"], cache: Cache, length_B: Int[Array, "B"], row_B: Int[Array, "B"] | None = None) -> Partial:
    """One query per row against the first `length` positions of its cache row (its own, or `row_B`); length 0 gives o = 0, l = 0."""
    B, H, C = q_BHC.shape
    if row_B is not None:
        cache = jax.tree.map(lambda x: x[row_B], cache)
    K, S = cache.k_RKSC.shape[1:3]
    visible = (jnp.arange(S)[None] < length_B[:, None])[:, None, None]
    q = q_BHC.reshape(B, K, H // K, C)
    scores = jnp.einsum("BKGC,BKSC->BKGS", q, cache.k_RKSC.astype(q.dtype), preferred_element_type=jnp.float32) * C**-0.5
    if cache.k_scale_RKS is not None:
        scores *= cache.k_scale_RKS[:, :, None]
    scores = jnp.where(visible, scores, NEG)
    m = scores.max(axis=-1)
    e = jnp.where(visible, jnp.exp(scores - m[..., None]), 0.0)
    total = e.sum(axis=-1)
    if cache.v_scale_RKS is not None:
        e *= cache.v_scale_RKS[:, :, None]
    o = jnp.einsum("BKGS,BKSC->BKGC", e.astype(q.dtype), cache.v_RKSC.astype(q.dtype), preferred_element_type=jnp.float32)
    o = o / jnp.maximum(total, 1e-30)[..., None]
    return Partial(o.reshape(B, H, C), m.reshape(B, H), total.reshape(B, H))


def merge(a: Partial, b: Partial) -> Float[Array, "B H C"]:
    """Attention over the keys of both parts, float32."""
    m = jnp.maximum(a.m_BH, b.m_BH)
    wa, wb = a.l_BH * jnp.exp(a.m_BH - m), b.l_BH * jnp.exp(b.m_BH - m)
    return (a.o_BHC * wa[..., None] + b.o_BHC * wb[..., None]) / (wa + wb)[..., None]
