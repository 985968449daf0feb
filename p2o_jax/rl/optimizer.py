"""AdamW with global-norm clipping, its learning-rate schedule, and the addition of updates to
params.

All arithmetic is float32. Params stored in bfloat16 are rounded stochastically: bfloat16 has 8
significant bits, so at a learning rate of 1e-6 most updates are far below half a unit in the last
place, and rounding to nearest would drop nearly all of them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from p2o_jax import config
from p2o_jax.runtime import rng


def make_optimizer(cfg: config.OptimConfig, num_updates: int) -> optax.GradientTransformation:
    """Returns AdamW with global-norm clipping, computed in float32 for params of any dtype.

    The second moment is float32, the first has `optim.mu_dtype`. With bfloat16 params an update
    holds up to 14 bytes per trained weight: 2 for params, 8 for moments, 4 for gradients (56 GB for
    4 billion weights; 64 GB with float32 params). Float32 copies of params, updates and random bits
    exist for one weight array at a time, in fused loops.
    """
    rate = make_rate(cfg, num_updates)
    adamw = optax.adamw(
        rate, b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay, mu_dtype=cfg.mu_dtype
    )
    inner = optax.chain(optax.clip_by_global_norm(cfg.clip_norm), adamw)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return inner.update(updates, state, in_float32(params))

    return optax.GradientTransformation(lambda params: inner.init(in_float32(params)), update)


def apply_updates(params: Any, updates: Any, opt_state: Any, seed: int) -> Any:
    """Returns params + updates, added in float32 and stored in the params' dtypes; bfloat16 is
    rounded stochastically.

    The random bits depend on the seed, the path of the array in the tree, and the number of updates
    counted in `opt_state`. They are the same on any mesh and after a resume. A skipped update is
    not counted.
    """
    count = next(s for s in jax.tree.leaves(opt_state, is_leaf=_is_adam) if _is_adam(s)).count
    update_key_2 = jax.random.key_data(jax.random.fold_in(rng.key(seed, "round"), count))

    def add(path: Any, p: jax.Array, u: jax.Array) -> jax.Array:
        if p.dtype != jnp.bfloat16:
            return p + u
        array_words = rng.name_words(["/".join(k.key for k in path)])[0]
        return round_stochastically(p.astype(jnp.float32) + u, update_key_2 ^ array_words)

    return jax.tree.map_with_path(add, params, updates)


def round_stochastically(x: jax.Array, key_2: jax.Array) -> jax.Array:
    """Rounds float32 numbers to one of their two bfloat16 neighbours, with probabilities that make
    x the expected value.

    A bfloat16 number is the upper half of a float32 number. Adding 16 random bits to the lower half
    carries into the upper half with probability (lower half) / 2**16. Values that are not finite
    are cast.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    upper = (bits + (_random_words(key_2, x.shape) >> 16)) & jnp.uint32(0xFFFF0000)
    return jnp.where(jnp.isfinite(x), lax.bitcast_convert_type(upper, jnp.float32), x).astype(
        jnp.bfloat16
    )


def _random_words(key_2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns random uint32 words, hashes of a key (two words) and the element's index:
    MurmurHash3's finalizer, twice.

    Unlike `jax.random.bits`, which loops over whole arrays on CPU, this fuses with its consumer on
    any device, so no words are stored.
    """
    strides = [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]
    index = sum(
        (
            lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(n)
            for axis, n in enumerate(strides)
        ),
        jnp.uint32(0),
    )
    words = jnp.broadcast_to(index, shape)
    for word in key_2:
        words = words ^ word
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            words = (words ^ (words >> shift)) * jnp.uint32(factor)
        words = words ^ (words >> 16)
    return words


def in_float32(tree: Any) -> Any:
    """Casts every array of a tree to float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _is_adam(state: Any) -> bool:
    return isinstance(state, optax.ScaleByAdamState)


def make_rate(cfg: config.OptimConfig, num_updates: int) -> optax.Schedule:
    """Returns the learning rate by update, from 0: linear warm-up, then constant or a half cosine
    that ends at 0.

    This is a schedule even where the rate is constant: optax counts steps only for schedules, and
    the tree of the optimizer state must not depend on `num_updates`, which may change on resume.

    ▲ The first update has a rate above 0 (the released code's first has none).
    """
    warmup = max(round(cfg.warmup_frac * num_updates), 1)
    if cfg.schedule == "constant":
        return (
            optax.linear_schedule(cfg.lr / warmup, cfg.lr, warmup - 1)
            if warmup > 1
            else optax.constant_schedule(cfg.lr)
        )

    def cosine(count: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.clip((jnp.asarray(count) + 1 - warmup) / max(num_updates - warmup, 1), 0.0, 1.0)
        return (
            cfg.lr
            * jnp.minimum((jnp.asarray(count) + 1) / warmup, 1.0)
            * 0.5
            * (1 + jnp.cos(jnp.pi * done))
        )

    return cosine
