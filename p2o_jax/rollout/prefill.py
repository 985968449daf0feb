"""Prompts into the prompt cache, all tokens but the last, a chunk at a time; chunks that prompts
have in common are computed once.

GEPA asks hundreds of questions under one template, and chat templates open with the same header:
`plan` finds, level by level, which prompts begin alike, and only the first of them is computed. The
others go on from its row: `extend` copies the earlier chunks along.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from p2o_jax.models import transformer
from p2o_jax.models.attention import reference
from p2o_jax.models.attention.reference import Cache
from p2o_jax.models.spec import ModelSpec

MIN_CHUNK, MAX_CHUNK = 16, 512
CHUNKS = 8  # of a bucket, between those two


class Piece(NamedTuple):
    """A prompt's chunk that is to be computed: its row in the prompt cache, and the row that
    holds what comes before.
    """

    row: int
    source: int


def chunk_of(bucket: int) -> int:
    """Tokens in a chunk of prompts of this bucket: a multiple of 8, as kernels want positions."""
    return (
        min(-(-bucket // 8), max(MIN_CHUNK // 8, min(-(-bucket // CHUNKS // 8), MAX_CHUNK // 8)))
        * 8
    )


def positions(bucket: int) -> int:
    """Positions of a prompt cache for this bucket: whole chunks."""
    return -(-bucket // chunk_of(bucket)) * chunk_of(bucket)


def plan(prompts: Sequence[tuple[int, ...]], chunk: int, share: bool) -> list[list[Piece]]:
    """For each chunk number the pieces to compute, prompt i in row i.

    Its last chunk is every prompt's own; an earlier one is computed by the first prompt that begins
    with the same tokens.
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
            begins_like = (source[i] if levels else 0, tokens)
            ends = len(prompts[i]) - 1 <= start + chunk
            if share and not ends and begins_like in first:
                source[i] = first[begins_like]
                continue
            pieces.append(Piece(i, source[i]))
            source[i] = i
            if len(tokens) == chunk:
                first.setdefault(begins_like, i)
        levels.append(pieces)
        waiting = [i for i in waiting if len(prompts[i]) - 1 > start + chunk]
    return levels


def extend(
    spec: ModelSpec,
    weights: Any,
    prompt_cache: tuple[Cache, ...],
    token_mQ: jax.Array,
    row_m: jax.Array,
    source_m: jax.Array,
    level: jax.Array,
) -> tuple[Any, ...]:
    """The prompt cache with chunk number `level` of m prompts in their rows, and the chunks before
    it copied there from `source`.

    A row beyond the prompt cache is nobody's: it is computed and dropped. Attention goes over the
    earlier chunks one at a time.
    """
    m, Q = token_mQ.shape
    dtype = weights["final_norm"].dtype

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        def earlier(
            i: jax.Array, carry: tuple[reference.Partial, Cache]
        ) -> tuple[reference.Partial, Cache]:
            total, cache = carry
            there = reference.by_position(lambda axis, x: _read(x, source_m, axis, i * Q, Q), cache)
            part = reference.over_rows(q, there, jnp.ones((Q, Q), bool))
            return reference.merge(total, part), _written(cache, there, row_m, i * Q)

        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        own = reference.over_rows(q, Cache(k, v), jnp.tri(Q, dtype=bool))
        total, cache = lax.fori_loop(0, level, earlier, (own, cache))
        return total.o_BHC.reshape(m, Q, *q.shape[2:]), _written(
            cache, reference.stored(k, v, cache), row_m, level * Q
        )

    position_mQ = jnp.broadcast_to(level * Q + jnp.arange(Q)[None], (m, Q))
    return transformer.hidden(
        spec, weights, token_mQ, position_mQ, attend, caches=prompt_cache, dtype=dtype
    )[1]


def _read(x: jax.Array, row_m: jax.Array, axis: int, start: jax.Array, size: int) -> jax.Array:
    """The rows of x, at positions start to start + size along the axis; without a copy of the rest."""

    def one(row: jax.Array) -> jax.Array:
        begin = [row] + [start if a == axis else 0 for a in range(1, x.ndim)]
        return lax.dynamic_slice(
            x, begin, [1] + [size if a == axis else x.shape[a] for a in range(1, x.ndim)]
        )[0]

    return jax.vmap(one)(row_m)


def _written(cache: Cache, new: Cache, row_m: jax.Array, start: jax.Array) -> Cache:
    """The cache with `new` in its rows, from position `start` on; rows beyond the cache are left
    out.
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
