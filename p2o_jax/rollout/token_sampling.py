"""Exact sampling of the next token, from one uniform number per row: temperature, top-k, top-p,
min-p and greedy.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from p2o_jax.types import SamplingParams

NEG = -1e30
Scalar = Any  # a JAX, NumPy or Python number


class SamplingScalars(NamedTuple):
    """`types.SamplingParams` as scalars, so that new values need no compilation."""

    temperature: Scalar
    top_k: Scalar
    top_p: Scalar
    min_p: Scalar
    plain_logps: Scalar = False


def to_scalars(sampling: SamplingParams) -> SamplingScalars:
    """Converts the settings to scalars of fixed dtypes."""
    s = sampling
    return SamplingScalars(
        np.float32(s.temperature),
        np.int32(s.top_k),
        np.float32(s.top_p),
        np.float32(s.min_p),
        np.bool_(s.plain_logps),
    )


def abstract_scalars() -> SamplingScalars:
    """Returns scalars with the dtypes of `to_scalars`, to lower programs with."""
    return SamplingScalars(
        np.float32(1), np.int32(0), np.float32(1), np.float32(0), np.bool_(False)
    )


def filters(sampling: SamplingParams) -> bool:
    """Whether top-k, top-p or min-p is on. They sort the vocabulary, which takes another
    program.
    """
    return sampling.temperature > 0 and (
        sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0
    )


def draw(
    logits_BV: Float[Array, "B V"],
    uniform_B: Float[Array, "B"],
    sampling: SamplingScalars,
    filtered: bool,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Draws a token for each row, and returns it with its log-prob.

    The log-prob is under softmax(logits / temperature) before any filter, or under softmax(logits)
    if `plain_logps` is set. At temperature 0 the token is the most likely one, with its log-prob
    under softmax(logits).
    """
    greedy = sampling.temperature == 0
    z_BV = logits_BV / jnp.where(greedy, 1.0, sampling.temperature)
    z_BV = z_BV - z_BV.max(axis=-1, keepdims=True)
    weight_BV = lax.optimization_barrier(jnp.exp(z_BV))  # used twice, computed once
    logz_B = jnp.log(weight_BV.sum(axis=-1))
    kept_BV = jnp.exp(keep(z_BV, sampling)) if filtered else weight_BV
    token_B = lax.cond(
        greedy,
        lambda: jnp.argmax(logits_BV, axis=-1).astype(jnp.int32),
        lambda: inverse_cdf(kept_BV, uniform_B),
    )
    logp_B = jnp.take_along_axis(z_BV, token_B[:, None], axis=-1)[:, 0] - logz_B

    def plain() -> jax.Array:
        return jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(
            logits_BV, axis=-1
        )

    return token_B, lax.cond(sampling.plain_logps, plain, lambda: logp_B)


def keep(z_BV: Float[Array, "B V"], sampling: SamplingScalars) -> Float[Array, "B V"]:
    """Returns the scores, with tokens excluded by top-k, then top-p, then min-p at a very low
    value. The best token always stays.
    """
    V = z_BV.shape[-1]
    sorted_BV = -jnp.sort(-z_BV, axis=-1)
    k = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, V), V)
    in_k_BV = jnp.arange(V)[None] < k
    probs_BV = jax.nn.softmax(jnp.where(in_k_BV, sorted_BV, NEG), axis=-1)
    mass_before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    stays_BV = (
        in_k_BV & (mass_before_BV < sampling.top_p) & (probs_BV >= sampling.min_p * probs_BV[:, :1])
    )
    last_B = jnp.maximum(stays_BV.sum(axis=-1), 1) - 1
    threshold_B1 = jnp.take_along_axis(sorted_BV, last_B[:, None], axis=-1)
    return jnp.where(z_BV >= threshold_B1, z_BV, NEG)


def inverse_cdf(weight_BV: Float[Array, "B V"], uniform_B: Float[Array, "B"]) -> Int[Array, "B"]:
    """Returns the token where the cumulative weight exceeds uniform x total: first the block, then
    the place inside it.

    Two short cumulative sums replace one over the vocabulary. With a sharded vocabulary only block
    sums are communicated.
    """
    B, V = weight_BV.shape
    size = block_of(V)
    blocks = -(-V // size)
    weight = jnp.pad(weight_BV, ((0, 0), (0, blocks * size - V))).reshape(B, blocks, size)
    sums = weight.sum(axis=-1)
    cumulative = jnp.cumsum(sums, axis=-1)
    block_B = _first_above(cumulative, uniform_B * cumulative[:, -1], sums)
    before_B = jnp.take_along_axis(cumulative - sums, block_B[:, None], axis=-1)[:, 0]
    inside = jnp.take_along_axis(weight, block_B[:, None, None], axis=1)[:, 0]
    place_B = _first_above(
        jnp.cumsum(inside, axis=-1), uniform_B * cumulative[:, -1] - before_B, inside
    )
    return (block_B * size + place_B).astype(jnp.int32)


def block_of(V: int) -> int:
    """Returns the tokens in a block: near the square root of V, a divisor of V if one is near,
    which saves a copy of the weights.

    A multiple of 8 blocks is preferred: no block then straddles two devices if the vocabulary is
    sharded.
    """
    root = max(int(V**0.5), 1)
    near = [size for size in range(max(root // 4, 1), 4 * root + 1) if V % size == 0]
    return min(near, key=lambda size: (V // size % 8 > 0, abs(size - root)), default=root)


def _first_above(cumulative: jax.Array, target_B: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns the first index whose cumulative sum exceeds the target. Rounding never selects an
    index of weight 0.
    """
    last = weight.shape[-1] - 1 - jnp.argmax(weight[:, ::-1] > 0, axis=-1)
    index = jnp.minimum((cumulative <= target_B[:, None]).sum(axis=-1), last)
    return jnp.where(jnp.take_along_axis(weight, index[:, None], axis=-1)[:, 0] > 0, index, last)
