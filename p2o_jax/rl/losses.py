"""The losses, as pure functions of each token (algorithm step 7).

Nothing here divides by a count: `aggregation_scale` gives each token's share of the mini-batch's loss, so that the sum over
tokens of loss x weight x scale is the exact aggregate, however the tokens are packed, micro-batched or sharded.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from p2o_jax.config import Loss


class TokenLoss(NamedTuple):
    """Each token's policy loss, and whether the clip or the dual clip decided it (0 or 1, float32)."""

    loss: Array
    clipped: Array
    dual_clipped: Array


def policy_loss(logp_new: Float[Array, "*B T"], logp_old: Float[Array, "*B T"], advantage: Float[Array, "*B T"], cfg: Loss) -> TokenLoss:
    """max(-A s, -A clip(s)) with the ratio s = exp(new - old); for A < 0 at most -A dual_clip (PPO, dual clip)."""
    ratio = jnp.exp(jnp.clip(logp_new - logp_old, -20.0, 20.0))
    free = -advantage * ratio
    bounded = -advantage * jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)
    loss = jnp.maximum(free, bounded)
    ceiling = -advantage * cfg.dual_clip
    negative = advantage < 0
    return TokenLoss(
        jnp.where(negative, jnp.minimum(loss, ceiling), loss),
        (bounded > free).astype(jnp.float32),
        (negative & (loss > ceiling)).astype(jnp.float32),
    )


def kl(logp_new: Float[Array, "*B T"], logp_ref: Float[Array, "*B T"], kind: Literal["k1", "k2", "k3"]) -> Float[Array, "*B T"]:
    """A per-token estimate of KL(new || ref) from the sampled token (Schulman's k1, k2, k3; k3 clipped as in the released code)."""
    if kind == "k1":
        return logp_new - logp_ref
    if kind == "k2":
        return 0.5 * jnp.square(logp_new - logp_ref)
    d = jnp.clip(logp_ref - logp_new, -20.0, 20.0)
    return jnp.clip(jnp.exp(d) - d - 1, -10.0, 10.0)


def aggregation_scale(length_N: Int[np.ndarray, "N"], aggregation: str, max_response_tokens: int) -> Float[np.ndarray, "N"]:
    """What each token of sequence n is multiplied with, float32; lengths count trained tokens of the whole mini-batch.

    ▲ Means are over the whole mini-batch, whatever the micro-batches; a sequence without trained tokens counts as a sequence.
    """
    length = length_N.astype(np.float64)
    count = len(length)
    scale = {
        "token-mean": np.full(count, 1 / max(length.sum(), 1)),
        "seq-mean-token-sum": np.full(count, 1 / max(count, 1)),
        "seq-mean-token-mean": 1 / (max(count, 1) * np.maximum(length, 1)),
        "seq-mean-token-sum-norm": np.full(count, 1 / max_response_tokens),
    }[aggregation]
    return scale.astype(np.float32)
