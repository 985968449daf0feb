"""The training objective of one micro-batch: policy loss, KL penalty, self-distillation, entropy
bonus, and the load-balancing loss of routers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from p2o_jax.config import LossConfig
from p2o_jax.models.experts import Routing, balance
from p2o_jax.rl import losses
from p2o_jax.rl.batch import PackedBatch

_CHOICES = "router_choices_"  # of each stack: choices of each expert [layers, E]


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
    if cfg.self_distill_coef != 0:
        divergence = losses.self_distillation(logp_new_BT, row.logp_sampler)
        sums["self_distill_loss"] = jnp.sum(jnp.where(row.taught, divergence * row.scale, 0.0))
        total += cfg.self_distill_coef * sums["self_distill_loss"]
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


def routers(
    routings: Sequence[Routing], share: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the load-balancing loss of a micro-batch, the mean over layers with experts, and sums
    for metrics.

    Args:
        routings: what the routers did, of each stack of layers.
        share: the micro-batch's share of the update.
    """
    balances = jnp.concatenate([balance(routing) for routing in routings])
    total = share * balances.mean()
    sums = {
        "router_balance": total,
        "router_entropy": sum(routing.entropy.sum() for routing in routings),
        "router_tokens": sum(routing.tokens.sum() for routing in routings),
        "router_recorded": sum(routing.recorded.sum() for routing in routings),
        "router_differ": sum(routing.differ.sum() for routing in routings),
    }
    choices = {f"{_CHOICES}{i}": routing.chosen_E for i, routing in enumerate(routings)}
    return total, {**sums, **choices}


def with_max_load(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the sums of all micro-batches with `router_max_load` in place of the choices of
    experts: those of a layer's most chosen expert over an even share, mean over layers.
    """
    choices = [x for name, x in sums.items() if name.startswith(_CHOICES)]
    if not choices:
        return sums
    even = [jnp.maximum(x.mean(axis=-1), 1e-9) for x in choices]
    loads = [x.max(axis=-1) / mean for x, mean in zip(choices, even, strict=True)]
    others = {name: x for name, x in sums.items() if not name.startswith(_CHOICES)}
    return {**others, "router_max_load": jnp.concatenate(loads).mean()}
