"""Drawing the next token: temperature, top-k, top-p, min-p and greedy, exact, from one uniform
number per row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from p2o_jax.types import SamplingParams

NEG = -1e30
Scalar = Any  # a number, of JAX, NumPy or Python


class SamplingScalars(NamedTuple):
    """The settings of `records.SamplingParams` as scalars, so that changing them compiles nothing."""

    temperature: Scalar
    top_k: Scalar
    top_p: Scalar
    min_p: Scalar
    plain_logps: Scalar = False


def to_scalars(sampling: SamplingParams) -> SamplingScalars:
    s = sampling
    return SamplingScalars(
        np.float32(s.temperature),
        np.int32(s.top_k),
        np.float32(s.top_p),
        np.float32(s.min_p),
        np.bool_(s.plain_logps),
    )


def abstract_scalars() -> SamplingScalars:
    """Scalars of the types that `to_scalars` gives, to lower programs with."""
    return SamplingScalars(
        np.float32(1), np.int32(0), np.float32(1), np.float32(0), np.bool_(False)
    )


def filters(sampling: SamplingParams) -> bool:
    """Whether any of top-k, top-p and min-p is on: those sort the vocabulary, so it is another
    program.
    """
    return sampling.temperature > 0 and (
        sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0
    )


def draw(
    logits_BV: Float[Array, "B V"],
    uniform_B: Float[Array, "B"],
    how: SamplingScalars,
    filtered: bool,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """A token for each row and its log-prob under softmax(logits / temperature), before any filter;
    or, if asked, under softmax(logits).

    At temperature 0 the token is the most likely one and the log-prob that of the plain softmax.
    """
    greedy = how.temperature == 0
    z_BV = logits_BV / jnp.where(greedy, 1.0, how.temperature)
    z_BV = z_BV - z_BV.max(axis=-1, keepdims=True)
    weight_BV = lax.optimization_barrier(jnp.exp(z_BV))  # computed once, though used twice
    logz_B = jnp.log(weight_BV.sum(axis=-1))
    kept_BV = jnp.exp(keep(z_BV, how)) if filtered else weight_BV
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

    return token_B, lax.cond(how.plain_logps, plain, lambda: logp_B)


def keep(z_BV: Float[Array, "B V"], how: SamplingScalars) -> Float[Array, "B V"]:
    """The scores with the tokens that top-k, then top-p, then min-p exclude at a very low value;
    the best always stays.
    """
    V = z_BV.shape[-1]
    sorted_BV = -jnp.sort(-z_BV, axis=-1)
    k = jnp.where(how.top_k > 0, jnp.minimum(how.top_k, V), V)
    in_k_BV = jnp.arange(V)[None] < k
    probs_BV = jax.nn.softmax(jnp.where(in_k_BV, sorted_BV, NEG), axis=-1)
    mass_before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    stays_BV = in_k_BV & (mass_before_BV < how.top_p) & (probs_BV >= how.min_p * probs_BV[:, :1])
    last_B = jnp.maximum(stays_BV.sum(axis=-1), 1) - 1
    threshold_B1 = jnp.take_along_axis(sorted_BV, last_B[:, None], axis=-1)
    return jnp.where(z_BV >= threshold_B1, z_BV, NEG)


def inverse_cdf(weight_BV: Float[Array, "B V"], uniform_B: Float[Array, "B"]) -> Int[Array, "B"]:
    """The token at which the cumulative weight passes uniform x total: first the block, then the
    place inside it.

    Two short cumulative sums instead of one over the vocabulary; with a sharded vocabulary only
    block sums travel.
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
    """Tokens in a block: near the root of V, a divisor of V where one is near, which saves a copy
    of the weights.

    Best is one of which there are a multiple of 8 blocks: with a vocabulary split over chips none
    of those straddles two of them.
    """
    root = max(int(V**0.5), 1)
    near = [size for size in range(max(root // 4, 1), 4 * root + 1) if V % size == 0]
    return min(near, key=lambda size: (V // size % 8 > 0, abs(size - root)), default=root)


def _first_above(cumulative: jax.Array, target_B: jax.Array, weight: jax.Array) -> jax.Array:
    """The first index whose cumulative sum exceeds the target; rounding never leads to an index
    of weight 0.
    """
    last = weight.shape[-1] - 1 - jnp.argmax(weight[:, ::-1] > 0, axis=-1)
    index = jnp.minimum((cumulative <= target_B[:, None]).sum(axis=-1), last)
    return jnp.where(jnp.take_along_axis(weight, index[:, None], axis=-1)[:, 0] > 0, index, last)
