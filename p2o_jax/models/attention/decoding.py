"""One decode step's attention to a cache whose rows are filled to different lengths: a function per
kind of device, one signature.

`for_mesh` chooses by the devices of the mesh: kernels that read each row up to its length on GPU
and TPU, `windowed` on CPU. `attention.over_cache` is the reference that all of them equal.

A slot's cache of generated tokens is a tuple of spans, one after the other: on CPU, where a span
that no slot has reached is not read, there are several; a kernel has one.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from p2o_jax.models.attention import pallas_decode, reference
from p2o_jax.models.attention.reference import Cache, Partial

Spans = tuple[Cache, ...]  # a slot's cache of one layer, by position


class Kind(NamedTuple):
    """How a kind of device holds, writes and reads its caches: signatures as of
    `attention.append` and `attention.over_cache`.
    """

    cache: type[Cache]
    append: Callable[[Cache, Cache, jax.Array], Cache]
    attend: Callable[[jax.Array, Cache, jax.Array, jax.Array | None], Partial]
    # slots hold a copy of their prompt's cache: to read another row is to copy it, at every step
    copies_prompts: bool
    spans: int = 1  # of a slot's cache, at most


TIERS = 4
WINDOWS = 5  # of a tier: the whole cache, a half, … a sixteenth
WINDOWED_FROM = (
    512  # positions of the cache; below, reading all of them is as fast and compiles sooner
)
COPY_COST = 2  # of a position in a tier, which is copied first, in positions read where they are
SPANS, MIN_SPAN = 4, 32  # of caches too short for tiers; and the positions of a span


def for_mesh(mesh: Mesh, kv_heads: int, head_dim: int) -> Kind:
    """For caches of these sizes that live on this mesh, inside a shard_map over its data and fsdp
    axes.

    Sizes that the kernels do not take are read as on a CPU.
    """
    platform = mesh.devices.flat[0].platform
    if kv_heads % mesh.shape["tensor"]:
        return Kind(Cache, reference.append, windowed, True)
    if platform == "tpu" and head_dim % pallas_decode.LANES == 0:
        append = pallas_decode.append_over_tensor(pallas_decode.tpu_append, mesh)
        return Kind(Cache, append, pallas_decode.over_tensor(pallas_decode.tpu, mesh), False)
    if platform in ("gpu", "cuda") and head_dim in (16, 32, 64, 128, 256):
        return Kind(
            Cache, reference.append, pallas_decode.over_tensor(pallas_decode.gpu, mesh), False
        )
    if platform == "cpu":
        return Kind(reference.Transposed, reference.append, windowed, True, SPANS)
    return Kind(Cache, reference.append, windowed, True)


def spans_of(kept: Kind, positions: int) -> tuple[int, ...]:
    """Positions of each span of a slot's cache of so many, a multiple of 8."""
    if kept.spans == 1 or positions >= WINDOWED_FROM:
        return (positions,)
    span = max(MIN_SPAN, -(-positions // kept.spans // 8) * 8)
    return tuple(min(span, positions - start) for start in range(0, positions, span))


def append(kept: Kind, spans: Spans, new: Cache, position_B: jax.Array) -> Spans:
    """The spans with `new`, one position of each row, at a position of each row."""
    if len(spans) == 1:
        return (kept.append(spans[0], new, position_B),)
    put = []
    for start, end, span in _bounds(spans):
        mine_B = (position_B >= start) & (position_B < end)
        # beyond the span: dropped
        put.append(kept.append(span, new, jnp.where(mine_B, position_B - start, end - start)))
    return tuple(put)


def over_spans(kept: Kind, q_BHC: jax.Array, spans: Spans, length_B: jax.Array) -> Partial:
    """`attention.over_cache` of the spans as one; a span that no row has reached is not read.

    Whether it is read makes no difference, to the last bit, to a row that has not reached it: to
    merge with nothing is exact.
    """
    longest = length_B.max()

    def within(start: int, end: int, span: Cache) -> Partial:
        return kept.attend(q_BHC, span, jnp.clip(length_B - start, 0, end - start), None)

    def further(so_far: Partial, start: int, end: int, span: Cache) -> Partial:
        return lax.cond(
            longest > start,
            lambda: reference.merge(so_far, within(start, end, span)),
            lambda: so_far,
        )

    first, *rest = _bounds(spans)
    return functools.reduce(lambda so_far, one: further(so_far, *one), rest, within(*first))


def _bounds(spans: Spans) -> list[tuple[int, int, Cache]]:
    """Each span with the positions where it starts and ends."""
    ends = list(itertools.accumulate(map(reference.num_positions, spans)))
    return list(zip([0, *ends], ends, spans, strict=False))


def windowed(
    q_BHC: jax.Array, cache: Cache, length_B: jax.Array, row_B: jax.Array | None = None
) -> Partial:
    """`attention.over_cache` by tiers of rows of similar length, each reading the shortest of a few
    windows that holds its longest.

    Rows are sorted by length at every call; nothing is moved or kept. With one old row among young
    ones, a single window would make all of them read as far as the old one does. A tier's window is
    copied out of the cache: where that costs more than it saves, the whole cache is read.
    """
    B, S = q_BHC.shape[0], reference.num_positions(cache)
    tiers = min(TIERS, B // 4)
    if S < WINDOWED_FROM or tiers < 2:
        return reference.over_cache(q_BHC, cache, length_B, row_B)
    windows = [S >> i for i in reversed(range(WINDOWS))]
    order = jnp.argsort(-length_B)
    rows_of = order if row_B is None else row_B[order]
    bounds = [B * t // tiers for t in range(tiers + 1)]
    window_of_tier = jnp.searchsorted(jnp.array(windows), length_B[order[jnp.array(bounds[:-1])]])

    def tier(t: int) -> Partial:
        mine = slice(bounds[t], bounds[t + 1])
        q, length, rows = q_BHC[order[mine]], length_B[order[mine]], rows_of[mine]

        def within(window: int) -> Callable[[], Partial]:
            def cut(axis: int, x: jax.Array) -> jax.Array:
                return x[(rows, *[slice(None)] * (axis - 1), slice(window))]

            return lambda: reference.over_cache(q, reference.by_position(cut, cache), length)

        return lax.switch(window_of_tier[t], [within(w) for w in windows])

    def in_tiers() -> Partial:
        back = jnp.argsort(order)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts)[back], *map(tier, range(tiers)))

    copied = (jnp.array(windows)[window_of_tier] * jnp.diff(jnp.array(bounds))).sum()
    return lax.cond(
        copied * COPY_COST < B * S,
        in_tiers,
        lambda: reference.over_cache(q_BHC, cache, length_B, row_B),
    )
