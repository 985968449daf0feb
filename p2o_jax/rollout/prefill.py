"""Prefill: writes all tokens of a prompt but the last into the prompt cache, chunk by chunk. Shared
prefixes are computed once.

GEPA asks hundreds of questions under one template, and chat templates begin with the same header.
`plan` determines, level by level, which prompts begin alike; only the first of them is computed.
The others continue from its row: `extend` copies the earlier chunks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from p2o_jax.models import delta_net, experts, transformer
from p2o_jax.models.attention import reference
from p2o_jax.models.attention.reference import Cache
from p2o_jax.models.delta_net import DeltaState
from p2o_jax.models.layer import Attend, Heads, Mixing
from p2o_jax.models.spec import DeltaNet, LayerType, ModelSpec
from p2o_jax.rollout import layer_caches
from p2o_jax.rollout.layer_caches import Caches

MIN_CHUNK, MAX_CHUNK = 16, 512
CHUNKS = 8  # chunks of a bucket, within these bounds


class Piece(NamedTuple):
    """A chunk of a prompt to compute: its row in the prompt cache, and the row that holds the
    chunks before it.
    """

    row: int
    source: int


def chunk_of(bucket: int) -> int:
    """Returns the tokens in a chunk of prompts of this bucket: a multiple of 8, as kernels
    require.
    """
    return (
        min(-(-bucket // 8), max(MIN_CHUNK // 8, min(-(-bucket // CHUNKS // 8), MAX_CHUNK // 8)))
        * 8
    )


def positions(bucket: int) -> int:
    """Returns the positions of a prompt cache for this bucket: whole chunks."""
    return -(-bucket // chunk_of(bucket)) * chunk_of(bucket)


def plan(prompts: Sequence[tuple[int, ...]], chunk: int, share: bool) -> list[list[Piece]]:
    """Returns, for each chunk number, the pieces to compute; prompt i has row i.

    Every prompt computes its own last chunk. An earlier chunk is computed by the first prompt that
    begins with the same tokens. Pieces that others continue from are last, so that a row is not
    overwritten before it is copied: its DeltaNet states are those of its newest chunk only.
    """
    levels: list[list[Piece]] = []
    source = list(range(len(prompts)))
    waiting = [i for i, prompt in enumerate(prompts) if len(prompt) > 1]
    while waiting:
        start = len(levels) * chunk
        pieces: list[Piece] = []
        first: dict[tuple[int, tuple[int, ...]], int] = {}
        for i in waiting:
            tokens = prompts[i][:-1][start : start + chunk]
            prefix = (source[i] if levels else 0, tokens)
            ends = len(prompts[i]) - 1 <= start + chunk
            if share and not ends and prefix in first:
                source[i] = first[prefix]
                continue
            pieces.append(Piece(i, source[i]))
            source[i] = i
            if len(tokens) == chunk:
                first.setdefault(prefix, i)
        levels.append(sorted(pieces, key=lambda piece: piece.row == piece.source))
        waiting = [i for i in waiting if len(prompts[i]) - 1 > start + chunk]
    return levels


Carry = tuple[reference.Partial, Cache]  # attention to the chunks so far, and their cache


@jax.named_scope("prefill")
def extend(
    spec: ModelSpec,
    weights: Any,
    prompt_cache: Caches,
    token_mt: jax.Array,
    count_m: jax.Array,
    row_m: jax.Array,
    source_m: jax.Array,
    level: jax.Array,
    mix_experts: experts.Mixture = experts.mixture,
) -> tuple[Any, ...]:
    """Returns the prompt cache with chunk number `level` of m prompts, and the chunks before it
    copied from their source rows.

    Args:
        spec: the model.
        weights: params in rollout layout.
        prompt_cache: the cache of each layer.
        token_mt: tokens of the chunks, padded at the end.
        count_m: number of tokens of each chunk.
        row_m: row of each prompt; a row beyond the cache is padding, computed and dropped.
        source_m: row that holds the chunks before.
        level: number of the chunk.
        mix_experts: see `layer.Mixing`.
    """
    m, t = token_mt.shape
    dtype = weights["final_norm"].dtype
    attend = _by_chunks(t, row_m, source_m, level)

    def recur(
        delta: DeltaNet, new: delta_net.Inputs, memory: DeltaState
    ) -> tuple[jax.Array, DeltaState]:
        before = jax.tree.map(lambda x: jnp.where(level > 0, x[source_m], 0.0), memory)
        out, after = delta_net.extend(delta, new, before, count_m)
        return out, jax.tree.map(lambda x, y: x.at[row_m].set(y, mode="drop"), memory, after)

    position_mt = jnp.broadcast_to(level * t + jnp.arange(t)[None], (m, t))
    return transformer.hidden(
        spec,
        weights,
        token_mt,
        position_mt,
        Mixing(attend, recur, mix_experts),
        caches=prompt_cache,
        dtype=dtype,
    ).caches


def _by_chunks(t: int, row_m: jax.Array, source_m: jax.Array, level: jax.Array) -> Attend:
    """Returns attention of a chunk of t tokens of each prompt to itself and to the chunks before
    it, which it copies. For the arguments see `extend`.

    The earlier chunks are read one at a time; with a sliding window, those that it reaches.
    """

    def attend(layer: LayerType, new: Heads, cache: Cache) -> tuple[jax.Array, Cache]:
        (q, k, v, sinks), cap, window = new, layer.soft_cap, layer.window
        kept = reference.num_positions(cache) // t  # chunks; beyond them, a ring

        def place(i: jax.Array) -> jax.Array:
            return (i % kept if window else i) * t

        def visible(i: jax.Array) -> jax.Array:
            if not window:
                return jnp.ones((t, t), bool)
            distance_tt = jnp.arange(t)[:, None] - jnp.arange(t)[None] + (level - i) * t
            return distance_tt < window

        def earlier(i: jax.Array, carry: Carry) -> Carry:
            total, cache = carry
            at = place(i)
            chunk = reference.by_position(lambda axis, x: _read(x, source_m, axis, at, t), cache)
            part = reference.over_rows(q, chunk, visible(i), cap)
            return reference.merge(total, part), _written(cache, chunk, row_m, at)

        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        own = reference.over_rows(q, Cache(k, v), reference.causal(t, window), cap)
        first = jnp.maximum(level - layer_caches.chunks_before(window, t), 0) if window else 0
        total, cache = lax.fori_loop(first, level, earlier, (own, cache))
        total = reference.with_sink(total, sinks)
        return total.o_BHC.reshape(q.shape), _written(
            cache, reference.stored(k, v, cache), row_m, place(level)
        )

    return attend


def _read(x: jax.Array, row_m: jax.Array, axis: int, start: jax.Array, size: int) -> jax.Array:
    """Reads rows of x, from position `start` along the axis, without copying the rest."""

    def one(row: jax.Array) -> jax.Array:
        begin = [row] + [start if a == axis else 0 for a in range(1, x.ndim)]
        return lax.dynamic_slice(
            x, begin, [1] + [size if a == axis else x.shape[a] for a in range(1, x.ndim)]
        )[0]

    return jax.vmap(one)(row_m)


def _written(cache: Cache, new: Cache, row_m: jax.Array, start: jax.Array) -> Cache:
    """Returns the cache with `new` in its rows from position `start`. Rows beyond the cache are
    dropped.
    """
    where = jnp.stack([row_m, jnp.broadcast_to(start, row_m.shape)], axis=1)

    def put(axis: int, x: jax.Array, y: jax.Array) -> jax.Array:
        numbers = lax.ScatterDimensionNumbers(
            tuple(range(1, x.ndim)),
            inserted_window_dims=(0,),
            scatter_dims_to_operand_dims=(0, axis),
        )
        return lax.scatter(x, where, y, numbers, mode=lax.GatherScatterMode.FILL_OR_DROP)

    return reference.by_position(put, cache, new)
