"""Attention, behind one idea: a piece of attention is (output, max, sum of exponentials), and pieces merge exactly.

`packed` is the dense reference for rows that hold several segments; `over_cache` is one decode step against a part of the
cache. Scores and sums are float32 whatever the inputs are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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


def over_cache(
    q_BHC: Float[Array, "B H C"],
    k_BKSC: Float[Array, "B K S C"],
    v_BKSC: Float[Array, "B K S C"],
    visible_BS: Bool[Array, "B S"],
) -> Partial:
    """One query per row against the visible positions of its cache; nothing visible gives o = 0, l = 0."""
    B, H, C = q_BHC.shape
    K = k_BKSC.shape[1]
    q = q_BHC.reshape(B, K, H // K, C)
    scores = jnp.einsum("BKGC,BKSC->BKGS", q, k_BKSC, preferred_element_type=jnp.float32) * C**-0.5
    scores = jnp.where(visible_BS[:, None, None], scores, NEG)
    m = scores.max(axis=-1)
    e = jnp.where(visible_BS[:, None, None], jnp.exp(scores - m[..., None]), 0.0)
    total = e.sum(axis=-1)
    o = jnp.einsum("BKGS,BKSC->BKGC", e.astype(v_BKSC.dtype), v_BKSC, preferred_element_type=jnp.float32)
    o = o / jnp.maximum(total, 1e-30)[..., None]
    return Partial(o.reshape(B, H, C), m.reshape(B, H), total.reshape(B, H))


def merge(a: Partial, b: Partial) -> Float[Array, "B H C"]:
    """Attention over the keys of both parts, float32."""
    m = jnp.maximum(a.m_BH, b.m_BH)
    wa, wb = a.l_BH * jnp.exp(a.m_BH - m), b.l_BH * jnp.exp(b.m_BH - m)
    return (a.o_BHC * wa[..., None] + b.o_BHC * wb[..., None]) / (wa + wb)[..., None]
