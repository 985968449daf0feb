"""Per-token losses, as pure functions (algorithm step 7).

Nothing here divides by a count. `aggregation_scale` gives each token's share of the mini-batch
loss, so the sum over tokens of loss * weight * scale is the exact aggregate, however tokens are
packed, micro-batched or sharded.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from p2o_jax.config import LossConfig

_LARGEST_RATIO = 10.0  # in `self_distillation`; the ratio mask's upper bound


class TokenLoss(NamedTuple):
    """Policy loss of each token, and whether the clip or the dual clip was active (0 or 1,
    float32).
    """

    loss: Array
    clipped: Array
    dual_clipped: Array


def policy_loss(
    logp_new: Float[Array, "*B T"],
    log_ratio: Float[Array, "*B T"],
    advantage: Float[Array, "*B T"],
    cfg: LossConfig,
) -> TokenLoss:
    """Returns max(-A s, -A clip(s)) with the ratio s = exp(log_ratio); for A < 0 at most -A
    dual_clip (PPO with dual clip).

    ratio=cispo gives -A stop_gradient(clip(s)) log p instead: every token keeps its gradient, with
    a bounded weight (arXiv 2506.13585). ratio=dppo gives -A s, and 0 where `moved_too_far`.
    """
    ratio = jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
    clipped = jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)
    if cfg.ratio == "cispo":
        return TokenLoss(
            -advantage * lax.stop_gradient(clipped) * logp_new,
            (clipped != ratio).astype(jnp.float32),
            jnp.zeros_like(ratio),
        )
    unclipped_loss = -advantage * ratio
    if cfg.ratio == "dppo":
        masked = moved_too_far(logp_new, log_ratio, advantage, cfg)
        return TokenLoss(
            jnp.where(masked, 0.0, unclipped_loss),
            masked.astype(jnp.float32),
            jnp.zeros_like(ratio),
        )
    clipped_loss = -advantage * clipped
    loss = jnp.maximum(unclipped_loss, clipped_loss)
    ceiling = -advantage * cfg.dual_clip
    negative = advantage < 0
    return TokenLoss(
        jnp.where(negative, jnp.minimum(loss, ceiling), loss),
        (clipped_loss > unclipped_loss).astype(jnp.float32),
        (negative & (loss > ceiling)).astype(jnp.float32),
    )


def moved_too_far(
    logp_new: Float[Array, "*B T"],
    log_ratio: Float[Array, "*B T"],
    advantage: Float[Array, "*B T"],
    cfg: LossConfig,
) -> Bool[Array, "*B T"]:
    """Returns where p_new - p_old, the change of the sampled token's probability, is above
    clip_high with A > 0, or below -clip_low with A < 0.

    DPPO's mask by total variation, that of the two outcomes "this token" and "another one", which
    is |p_new - p_old| (arXiv 2602.04879). Unlike a clipped ratio it leaves rare tokens free: one
    of probability 1e-4 that doubles has moved by 1e-4.
    """
    moved = jnp.exp(logp_new) - jnp.exp(logp_new - log_ratio)
    return jnp.where(advantage > 0, moved > cfg.clip_high, moved < -cfg.clip_low)


def log_ratio(
    logp_new: Float[Array, "B T"],
    logp_old: Float[Array, "B T"],
    segment: Int[Array, "B T"],
    trained: Bool[Array, "B T"],
    cfg: LossConfig,
) -> Float[Array, "B T"]:
    """Returns log pi_new - log pi_old of each token; with ratio=sequence, its mean over the trained
    tokens of the token's segment.

    The mean is the GSPO ratio (arXiv 2507.18071). It is a constant to the gradient; each token
    contributes its own gradient instead. This equals GSPO's gradient if all tokens of a sequence
    have the same weight. Tokens of weight 0 (masked by context distillation) are part of the mean
    but contribute no gradient.

    Args:
        logp_new: log-probs under the current params.
        logp_old: log-probs under the params that the ratio is taken against.
        segment: segment number of each token, from 1; 0 is padding.
        trained: which tokens are trained.
        cfg: `ratio` selects the kind.
    """
    difference = logp_new - logp_old
    if cfg.ratio != "sequence":
        return difference
    num_segments = segment.shape[1] + 1

    def mean(x_T: Array, segment_T: Array, trained_T: Array) -> Array:
        total = jax.ops.segment_sum(jnp.where(trained_T, x_T, 0.0), segment_T, num_segments)
        count = jax.ops.segment_sum(trained_T.astype(jnp.float32), segment_T, num_segments)
        return (total / jnp.maximum(count, 1.0))[segment_T]

    return (
        lax.stop_gradient(jax.vmap(mean)(difference, segment, trained))
        + logp_new
        - lax.stop_gradient(logp_new)
    )


def kl(
    logp_new: Float[Array, "*B T"], logp_ref: Float[Array, "*B T"], kind: Literal["k1", "k2", "k3"]
) -> Float[Array, "*B T"]:
    """Returns a per-token estimate of KL(new || ref): Schulman's k1, k2 or k3, the last clipped as
    in the released code.
    """
    if kind == "k1":
        return logp_new - logp_ref
    if kind == "k2":
        return 0.5 * jnp.square(logp_new - logp_ref)
    d = jnp.clip(logp_ref - logp_new, -20.0, 20.0)
    return jnp.clip(jnp.exp(d) - d - 1, -10.0, 10.0)


def self_distillation(
    logp_new: Float[Array, "*B T"], logp_templated: Float[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """Returns a per-token estimate of KL(q || p) from tokens of q = pi(. | T(x, z)), with p =
    pi_new(. | x): r - 1 - log r with r = p / q. Above r = 10 it is continued as a line in log r.

    Its gradient is (r - 1) grad log p. Where p is much smaller than q this is supervised training,
    -grad log p, and it vanishes where p = q. Over all tokens of q its mean is the gradient of the
    divergence, -sum_v q(v) grad log p(v), because E_q[r grad log p] = 0. Here it is summed over
    right responses alone, as in HDPO (arXiv 2603.23871), so it favours what they have in common,
    too. SDPO (arXiv 2601.20802) samples from p instead. The line bounds the gradient at tokens that
    q drew by chance, whose r may be in the thousands.
    """
    log_r = logp_new - logp_templated
    bounded = jnp.minimum(log_r, math.log(_LARGEST_RATIO))
    return jnp.expm1(bounded) + _LARGEST_RATIO * (log_r - bounded) - log_r


def aggregation_scale(
    length_N: Int[np.ndarray, "N"], aggregation: str, max_response_tokens: int
) -> Float[np.ndarray, "N"]:
    """Returns the factor of each token of sequence n, float32. `length_N` counts the trained tokens
    of the whole mini-batch.

    ▲ Means are over the whole mini-batch, independent of micro-batches. A sequence without trained
    tokens counts as a sequence.
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
