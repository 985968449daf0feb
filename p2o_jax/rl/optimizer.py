"""The optimizer: AdamW behind a clip of the global norm, and its learning rate."""

import jax
import jax.numpy as jnp
import optax

from p2o_jax import config


def make_optimizer(cfg: config.Optim, num_updates: int) -> optax.GradientTransformation:
    """AdamW behind a clip of the global norm; the second moment, master weights and all norms are float32."""
    rate = make_rate(cfg, num_updates)
    adamw = optax.adamw(rate, b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay, mu_dtype=cfg.mu_dtype)
    return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), adamw)


def make_rate(cfg: config.Optim, num_updates: int) -> optax.Schedule:
    """The learning rate of each update, from 0: linear warm-up, then constant or a half cosine that ends at 0.

    Always a schedule, even where the rate never changes: optax keeps a step count for a schedule and none for a number, and
    the optimizer state's tree must not depend on `num_updates`, which may change on resume.

    ▲ The first update has a rate above 0 (the released code's first has none).
    """
    warmup = max(round(cfg.warmup_frac * num_updates), 1)
    if cfg.schedule == "constant":
        return optax.linear_schedule(cfg.lr / warmup, cfg.lr, warmup - 1) if warmup > 1 else optax.constant_schedule(cfg.lr)

    def cosine(count: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.clip((jnp.asarray(count) + 1 - warmup) / max(num_updates - warmup, 1), 0.0, 1.0)
        return cfg.lr * jnp.minimum((jnp.asarray(count) + 1) / warmup, 1.0) * 0.5 * (1 + jnp.cos(jnp.pi * done))

    return cosine
