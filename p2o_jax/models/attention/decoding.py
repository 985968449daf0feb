"""Attention of one decode step to a cache whose rows are filled to different lengths: a function
per kind of device, with one signature.

`for_mesh` chooses by the devices of the mesh: kernels that read each row up to its length on GPU
and TPU, `windowed` on CPU. All of them equal `reference.over_cache`.

A slot's cache of generated tokens is a tuple of consecutive spans. On CPU there are several, and a
span that no slot has reached is not read. Kernels use one span.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from p2o_jax.models.attention import pallas_append, pallas_decode, reference
from p2o_jax.models.attention.reference import Cache, Partial

Spans = tuple[Cache, ...]  # one layer's cache of generated tokens, in order of position

Decode = Callable[..., Partial]  # signature of `reference.over_cache`
# partition of queries, cache and results; of lengths and rows
HEADS, WHOLE = PartitionSpec(None, "tensor"), PartitionSpec()


class CacheOps(NamedTuple):
    """How a kind of device holds, writes and reads caches; signatures of `reference.append` and
    `reference.over_cache`.
    """

    cache: type[Cache]
    append: Callable[[Cache, Cache, jax.Array], Cache]
    attend: Decode
    # slots hold a copy of their prompt's cache, because reading another row copies it at every step
    copies_prompts: bool
    spans: int = 1  # maximum number of spans of a slot's cache


TIERS = 4
WINDOWS = 5  # window sizes: the whole cache, 1/2, ... 1/16
WINDOWED_FROM = (
    512  # positions of the cache; reading a shorter one whole is as fast and compiles faster
)
COPY_COST = 2  # cost of a position in a tier, which is copied first, relative to one read in place
SPANS, MIN_SPAN = 4, 32  # for caches too short for tiers: spans, and minimum positions of a span


def for_mesh(mesh: Mesh, kv_heads: int, head_dim: int) -> CacheOps:
    """Returns the operations for caches of these sizes on this mesh, for use inside a shard_map
    over data and fsdp.

    Sizes that the kernels do not support use the CPU's operations.
    """
    platform = mesh.devices.flat[0].platform
    if kv_heads % mesh.shape["tensor"]:
        return CacheOps(Cache, reference.append, windowed, True)
    if platform == "tpu" and head_dim % pallas_decode.LANES == 0:
        append = append_over_tensor(pallas_append.tpu_append, mesh)
        return CacheOps(Cache, append, over_tensor(pallas_decode.tpu, mesh), False)
    if platform in ("gpu", "cuda") and head_dim in (16, 32, 64, 128, 256):
        return CacheOps(Cache, reference.append, over_tensor(pallas_decode.gpu, mesh), False)
    if platform == "cpu":
        return CacheOps(reference.Transposed, reference.append, windowed, True, SPANS)
    return CacheOps(Cache, reference.append, windowed, True)


def over_tensor(attend: Decode, mesh: Mesh) -> Decode:
    """Wraps a kernel for use in a shard_map over the mesh's other axes: each device of the tensor
    axis processes its heads.

    The compiler cannot partition a kernel, and rejects even an axis of size 1 that is left to it.
    If the heads do not divide, the dense reference is used, which the compiler can partition.
    """

    def split(
        q_BHC: jax.Array,
        cache: Cache,
        length_B: jax.Array,
        row_B: jax.Array | None = None,
        soft_cap: float = 0.0,
    ) -> Partial:
        if cache.k_AKSC.shape[1] % mesh.shape["tensor"]:
            return reference.over_cache(q_BHC, cache, length_B, row_B, soft_cap)
        run = jax.shard_map(
            functools.partial(attend, soft_cap=soft_cap),
            in_specs=(HEADS, HEADS, WHOLE, WHOLE),
            out_specs=HEADS,
            axis_names={"tensor"},
            check_vma=False,
        )
        return run(q_BHC, cache, length_B, row_B)

    return split


def append_over_tensor(
    write: Callable[[Cache, Cache, jax.Array], Cache], mesh: Mesh
) -> Callable[[Cache, Cache, jax.Array], Cache]:
    """Wraps `pallas_append.tpu_append` for a shard_map over the mesh's other axes, like
    `over_tensor`.
    """

    def split(cache: Cache, new: Cache, position_B: jax.Array) -> Cache:
        if cache.k_AKSC.shape[1] % mesh.shape["tensor"]:
            return reference.append(cache, new, position_B)
        run = jax.shard_map(
            write,
            in_specs=(HEADS, HEADS, WHOLE),
            out_specs=HEADS,
            axis_names={"tensor"},
            check_vma=False,
        )
        return run(cache, new, position_B)

    return split


def spans_of(cache_ops: CacheOps, positions: int) -> tuple[int, ...]:
    """Returns the positions of each span of a slot's cache; `positions` is a multiple of 8."""
    if cache_ops.spans == 1 or positions >= WINDOWED_FROM:
        return (positions,)
    span = max(MIN_SPAN, -(-positions // cache_ops.spans // 8) * 8)
    return tuple(min(span, positions - start) for start in range(0, positions, span))


def append(cache_ops: CacheOps, spans: Spans, new: Cache, position_B: jax.Array) -> Spans:
    """Writes `new`, one position of each row, at a position of each row."""
    if len(spans) == 1:
        return (cache_ops.append(spans[0], new, position_B),)
    put = []
    for start, end, span in bounds(spans):
        mine_B = (position_B >= start) & (position_B < end)
        # positions beyond the span are dropped
        put.append(cache_ops.append(span, new, jnp.where(mine_B, position_B - start, end - start)))
    return tuple(put)


def over_spans(
    cache_ops: CacheOps,
    q_BHC: jax.Array,
    spans: Spans,
    length_B: jax.Array,
    soft_cap: float = 0.0,
) -> Partial:
    """Returns `reference.over_cache` of the concatenated spans. A span that no row has reached is
    not read.

    Rows that have not reached a span are bit-identical whether or not it is read: merging with an
    empty partial result is exact.

    Args:
        cache_ops: how this kind of device reads caches.
        q_BHC: one query per row.
        spans: the spans of one layer.
        length_B: positions to read.
        soft_cap: cap of the scores.
    """
    longest = length_B.max()

    def within(start: int, end: int, span: Cache) -> Partial:
        length = jnp.clip(length_B - start, 0, end - start)
        return cache_ops.attend(q_BHC, span, length, None, soft_cap)

    def further(so_far: Partial, start: int, end: int, span: Cache) -> Partial:
        return lax.cond(
            longest > start,
            lambda: reference.merge(so_far, within(start, end, span)),
            lambda: so_far,
        )

    first, *rest = bounds(spans)
    return functools.reduce(lambda so_far, one: further(so_far, *one), rest, within(*first))


def bounds(spans: Spans) -> list[tuple[int, int, Cache]]:
    """Returns (start, stop, span) of each span."""
    ends = list(itertools.accumulate(map(reference.num_positions, spans)))
    return list(zip([0, *ends], ends, spans, strict=False))


def windowed(
    q_BHC: jax.Array,
    cache: Cache,
    length_B: jax.Array,
    row_B: jax.Array | None = None,
    soft_cap: float = 0.0,
) -> Partial:
    """`reference.over_cache` in tiers of rows of similar length; each tier reads the shortest of a
    few windows that holds its longest row.

    Rows are sorted by length at every call; nothing is moved permanently. With a single window, one
    long row would make all rows read as far. A tier's window is copied out of the cache; where that
    would cost more than it saves, the whole cache is read.

    Args:
        q_BHC: one query per row.
        cache: cache of one layer.
        length_B: positions to read.
        row_B: cache row of each query; None: row b.
        soft_cap: cap of the scores.
    """
    B, S = q_BHC.shape[0], reference.num_positions(cache)
    tiers = min(TIERS, B // 4)
    if S < WINDOWED_FROM or tiers < 2:
        return reference.over_cache(q_BHC, cache, length_B, row_B, soft_cap)
    windows = [S >> i for i in reversed(range(WINDOWS))]
    order = jnp.argsort(-length_B)
    rows_of = order if row_B is None else row_B[order]
    edges = [B * t // tiers for t in range(tiers + 1)]
    window_of_tier = jnp.searchsorted(jnp.array(windows), length_B[order[jnp.array(edges[:-1])]])

    def tier(t: int) -> Partial:
        mine = slice(edges[t], edges[t + 1])
        q, length, rows = q_BHC[order[mine]], length_B[order[mine]], rows_of[mine]

        def within(window: int) -> Callable[[], Partial]:
            def cut(axis: int, x: jax.Array) -> jax.Array:
                return x[(rows, *[slice(None)] * (axis - 1), slice(window))]

            return lambda: reference.over_cache(
                q, reference.by_position(cut, cache), length, soft_cap=soft_cap
            )

        return lax.switch(window_of_tier[t], [within(w) for w in windows])

    def in_tiers() -> Partial:
        back = jnp.argsort(order)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts)[back], *map(tier, range(tiers)))

    copied = (jnp.array(windows)[window_of_tier] * jnp.diff(jnp.array(edges))).sum()
    return lax.cond(
        copied * COPY_COST < B * S,
        in_tiers,
        lambda: reference.over_cache(q_BHC, cache, length_B, row_B, soft_cap),
    )
