"""The optimizer: AdamW behind a clip of the global norm, its learning rate, and how updates are
added to params.

Everything is computed in float32. Params stored in bfloat16 are rounded stochastically: a bfloat16
number has 8 bits, so that an update at a learning rate of 1e-6 is far below half a unit in the last
place of most weights, and rounding to nearest would drop nearly all of it.
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
    """AdamW behind a clip of the global norm, in float32 whatever dtype the params are stored in.

    The second moment is float32, the first `optim.mu_dtype`. With bfloat16 params an update holds
    14 bytes for each trained
    weight: 2 of the params, 8 of the moments, 4 of the gradients (56 GB at 4 billion weights, where
    float32 params take 64 GB). Float32 copies of params, the updates and the random bits exist for
    one weight array at a time, in fused loops.
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
    """The sums of params and updates, added in float32, in the params' dtypes; bfloat16 ones are
    rounded stochastically.

    The random bits depend on the seed, the path of the array in the tree, and the number of updates
    that `opt_state` has
    counted: they are the same on any mesh and after a resume. An update that is skipped is not
        counted, and leaves no trace.
    """
    count = next(s for s in jax.tree.leaves(opt_state, is_leaf=_is_adam) if _is_adam(s)).count
    of_update = jax.random.key_data(jax.random.fold_in(rng.key(seed, "round"), count))

    def add(path: Any, p: jax.Array, u: jax.Array) -> jax.Array:
        if p.dtype != jnp.bfloat16:
            return p + u
        of_array = rng.name_words(["/".join(k.key for k in path)])[0]
        return round_stochastically(p.astype(jnp.float32) + u, of_update ^ of_array)

    return jax.tree.map_with_path(add, params, updates)


def round_stochastically(x: jax.Array, key_2: jax.Array) -> jax.Array:
    """Each float32 number as one of its two neighbours in bfloat16, the nearer the likelier: x is
    the mean.

    A bfloat16 is the upper half of a float32. Adding 16 random bits to the lower half carries into
    the upper one with the probability that the lower half is of a whole unit. What is not finite is
    cast.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    upper = (bits + (_random_words(key_2, x.shape) >> 16)) & jnp.uint32(0xFFFF0000)
    return jnp.where(jnp.isfinite(x), lax.bitcast_convert_type(upper, jnp.float32), x).astype(
        jnp.bfloat16
    )


def _random_words(key_2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random uint32 words, each a hash of a key of two such words and the element's index:
    MurmurHash3's finalizer, twice.

    Unlike `jax.random.bits`, which is a loop over whole arrays on CPUs, it fuses with what uses it
    on any device: no words are stored.
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
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _is_adam(state: Any) -> bool:
    return isinstance(state, optax.ScaleByAdamState)


def make_rate(cfg: config.OptimConfig, num_updates: int) -> optax.Schedule:
    """The learning rate of each update, from 0: linear warm-up, then constant or a half cosine that
    ends at 0.

    Always a schedule, even where the rate never changes: optax keeps a step count for a schedule
    and none for a number, and the optimizer state's tree must not depend on `num_updates`, which
    may change on resume.

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
