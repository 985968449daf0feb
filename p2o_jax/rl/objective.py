"""The training objective of one micro-batch: policy loss, KL penalty and entropy bonus."""

import jax
import jax.numpy as jnp
from jax import lax

from p2o_jax.config import LossConfig
from p2o_jax.rl import losses
from p2o_jax.rl.batch import PackedBatch


def objective(
    logp_new_BT: jax.Array, entropy_BT: jax.Array, row: PackedBatch, cfg: LossConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns this micro-batch's part of the loss, and sums over its trained tokens.

    Tokens marked `fresh` were sampled from the current params, so their new log-probs are the old
    ones too, and the difference to the sampler's log-probs measures its numerical gap.

    Parts of a mini-batch add up to its loss: `row.scale` holds each token's share
    (losses.aggregation_scale).
    """
    logp_old_BT = jnp.where(row.fresh, lax.stop_gradient(logp_new_BT), row.logp_old)
    log_ratio_BT = losses.log_ratio(logp_new_BT, logp_old_BT, row.segment, row.trained, cfg)
    token = losses.policy_loss(logp_new_BT, log_ratio_BT, row.advantage, cfg)
    policy = jnp.sum(jnp.where(row.trained, token.loss * row.weight * row.scale, 0.0))
    sums = {
        "policy_loss": policy,
        "tokens": row.trained.sum(),
        "real_tokens": (row.segment > 0).sum(),
    }
    total = policy
    if cfg.kl != "off":
        divergence = losses.kl(logp_new_BT, row.logp_ref, cfg.kl)
        sums["kl_loss"] = jnp.sum(jnp.where(row.trained, divergence * row.scale, 0.0))
        total += cfg.kl_coef * sums["kl_loss"]
    if cfg.entropy_coef != 0:
        total -= cfg.entropy_coef * jnp.sum(jnp.where(row.trained, entropy_BT * row.scale, 0.0))
    per_token = {
        "clipped": token.clipped,
        "dual_clipped": token.dual_clipped,
        "approx_kl": jnp.clip(logp_old_BT - logp_new_BT, -20.0, 20.0),
        "entropy": entropy_BT,
    }
    sums |= {name: jnp.sum(jnp.where(row.trained, x, 0.0)) for name, x in per_token.items()}
    gap_BT = jnp.where(row.fresh, jnp.abs(logp_new_BT - row.logp_sampler), 0.0)
    sums |= {"fresh_tokens": row.fresh.sum(), "gap": gap_BT.sum(), "max_gap": gap_BT.max()}
    return total, {"loss": total, **sums}
