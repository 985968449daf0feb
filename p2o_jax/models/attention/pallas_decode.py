"""One decode step of attention that reads only the filled part of each row: `reference.over_cache`
as Pallas kernels for GPU and TPU.

Both kernels read the first `length` positions of each row's cache in place, in blocks of positions,
and carry (weighted values, max, sum of exponentials) from block to block in float32. The query
heads that share a key/value head are the rows of a block's matrix products. Unsupported shapes use
the dense reference.

On GPU (Triton), a program handles a row, a head and one of `splits` equal parts of the row's
blocks; the parts are merged outside. On TPU (Mosaic), the grid enumerates all rows' blocks, listed
from the lengths before the kernel starts: no step is spent on a block that no row needs, and the
next block is fetched during the current one, also across rows. There the cache must be written by
`pallas_append.tpu_append`; otherwise the compiler copies all of it before every call.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from p2o_jax.models.attention.reference import NEG, Cache, Partial, capped, over_cache

Carry = tuple[jax.Array, jax.Array, jax.Array]  # weighted values [..., C], max and sum [..., 1]

GPU_BLOCK = {4: 64, 2: 128, 1: 128}  # positions of a block, by element size in bytes
# rows of a product: Triton's minimum, and the heads of a program
GPU_MIN_ROWS, GPU_MAX_ROWS = 16, 64
# twice the multiprocessors of an H100 or H200; with fewer rows x heads, positions are split
GPU_PROGRAMS = 264
TPU_BLOCK = 512
# heads are split over the two cores of a v4 or v5p; a single core processes both halves in turn
TPU_CORES = 2
LANES = 128  # lanes of a TPU register


def gpu(
    q_BHC: Float[Array, "B H C"],
    cache: Cache,
    length_B: Int[Array, "B"],
    row_B: Int[Array, "B"] | None = None,
    soft_cap: float = 0.0,
    interpret: bool = False,
) -> Partial:
    """`reference.over_cache` as a Triton kernel, for head sizes that are powers of two from 16 to
    256.

    Args:
        q_BHC: one query per slot.
        cache: cache of one layer.
        length_B: positions to read of each slot's row.
        row_B: cache row of each slot; None: row b.
        soft_cap: cap of the scores.
        interpret: run the kernel's interpreter, for tests on CPU.

    Raises:
        ValueError: an int8 cache of a size that the kernel's offsets cannot address (Pallas uses 32
            bits up to 4 GiB).
    """
    (B, H, C), (K, S) = q_BHC.shape, cache.k_AKSC.shape[1:3]
    if C & (C - 1) or not 16 <= C <= 256:
        return over_cache(q_BHC, cache, length_B, row_B, soft_cap)
    if cache.k_AKSC.size > 2**31 and cache.k_AKSC.nbytes <= 2**32:
        raise ValueError(
            f"a layer's int8 cache {cache.k_AKSC.shape} takes 2 to 4 GiB of a device: use fewer or"
            " shorter rows, or twice as many"
        )
    h, block = H // K, GPU_BLOCK[cache.k_AKSC.dtype.itemsize]
    rows = min(max(pl.next_power_of_2(h), GPU_MIN_ROWS), GPU_MAX_ROWS)
    parts = pl.cdiv(h, rows)
    splits = max(1, min(GPU_PROGRAMS // (B * K * parts), pl.cdiv(S, block)))
    outs = [jax.ShapeDtypeStruct((splits, B, K, h, *tail), jnp.float32) for tail in ((C,), (), ())]
    tensors = [x for x in cache if x is not None]
    in_specs, out_specs = _gpu_specs(rows, C, parts, len(tensors))
    o, m, total = pl.pallas_call(
        functools.partial(
            _gpu_kernel,
            num_heads=h,
            parts=parts,
            splits=splits,
            block=block,
            soft_cap=soft_cap,
        ),
        grid=(B, K * parts, splits),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=outs,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="ragged_decode",
    )(length_B, jnp.arange(B) if row_B is None else row_B, q_BHC.reshape(B, K, h, C), *tensors)
    return _merged(o.reshape(splits, B, H, C), m.reshape(splits, B, H), total.reshape(splits, B, H))


def _gpu_specs(
    rows: int, size: int, parts: int, num_tensors: int
) -> tuple[list[pl.BlockSpec], list[pl.BlockSpec]]:
    """The blocks of a program: lengths, rows of the cache, queries and the cache's tensors; the
    partial sums of values, maxima and totals. Query heads come in `parts` of `rows`.
    """
    queries = pl.BlockSpec((None, None, rows, size), lambda b, n, s: (b, n // parts, n % parts, 0))
    values = pl.BlockSpec(
        (None, None, None, rows, size), lambda b, n, s: (s, b, n // parts, n % parts, 0)
    )
    per_head = pl.BlockSpec((None, None, None, rows), lambda b, n, s: (s, b, n // parts, n % parts))
    whole = [pl.BlockSpec() for _ in range(num_tensors)]
    return [pl.BlockSpec(), pl.BlockSpec(), queries, *whole], [values, per_head, per_head]


def _merged(o: jax.Array, m: jax.Array, total: jax.Array) -> Partial:
    """Merges the partial results of a row's splits, the leading axis."""
    top = m.max(axis=0)
    w = jnp.exp(m - top[None])
    total = (total * w).sum(axis=0)
    mean = (o * w[..., None]).sum(axis=0) / jnp.maximum(total, 1e-30)[..., None]
    return Partial(mean, top, total)


def _gpu_kernel(
    length_ref: Any,
    row_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    *refs: Any,
    num_heads: int,
    parts: int,
    splits: int,
    block: int,
    soft_cap: float,
) -> None:
    """Processes one part of one row's blocks, for `rows` query heads of one key/value head."""
    *scale_refs, o_ref, m_ref, total_ref = refs
    b, n, split = (pl.program_id(axis) for axis in range(3))
    length, row, head = length_ref[b], row_ref[b], n // parts
    rows, C = q_ref.shape
    real = n % parts * rows + jnp.arange(rows) < num_heads
    q = plgpu.load(q_ref, mask=real[:, None], other=0.0)
    num_blocks = pl.cdiv(length, block)
    per_split = pl.cdiv(num_blocks, splits)
    first = split * per_split

    def one(i: jax.Array, carry: Carry) -> Carry:
        positions = pl.ds(i * block, block)
        inside = i * block + jnp.arange(block) < length
        k, v = (
            plgpu.load(x.at[row, head, positions, :], mask=inside[:, None], other=0).astype(q.dtype)
            for x in (k_ref, v_ref)
        )
        scales = [
            plgpu.load(x.at[row, head, positions], mask=inside, other=0.0)[None] for x in scale_refs
        ]
        precision = _precision(q.dtype)
        scores = plgpu.dot(q, k, trans_b=True, precision=precision)
        return _add_block(
            carry,
            scores * C**-0.5,
            inside[None],
            scales,
            lambda e: plgpu.dot(e.astype(q.dtype), v, precision=precision),
            soft_cap,
        )

    start = jnp.zeros((rows, C)), jnp.full((rows, 1), NEG), jnp.zeros((rows, 1))
    o, m, total = lax.fori_loop(first, jnp.minimum(first + per_split, num_blocks), one, start)
    plgpu.store(o_ref, o, mask=real[:, None])
    plgpu.store(m_ref, m[:, 0], mask=real)
    plgpu.store(total_ref, total[:, 0], mask=real)


def tpu(
    q_BHC: Float[Array, "B H C"],
    cache: Cache,
    length_B: Int[Array, "B"],
    row_B: Int[Array, "B"] | None = None,
    soft_cap: float = 0.0,
    interpret: bool = False,
) -> Partial:
    """`reference.over_cache` as a Mosaic kernel, for head sizes that are multiples of 128.

    If the positions are not a multiple of 8, the compiler uses another layout and copies the cache
    before each call.

    Args:
        q_BHC: one query per slot.
        cache: cache of one layer.
        length_B: positions to read of each slot's row.
        row_B: cache row of each slot; None: row b.
        soft_cap: cap of the scores.
        interpret: run the kernel's interpreter, for tests on CPU.
    """
    (B, H, C), (K, S) = q_BHC.shape, cache.k_AKSC.shape[1:3]
    if C % LANES:
        return over_cache(q_BHC, cache, length_B, row_B, soft_cap)
    h, block = H // K, min(TPU_BLOCK, S)
    rows = -(-h // 16) * 16
    cores = TPU_CORES if K % TPU_CORES == 0 else 1
    q = jnp.pad(q_BHC.reshape(B, K, h, C), ((0, 0), (0, 0), (0, rows - h), (0, 0)))
    work, num_items = _work(length_B, block, pl.cdiv(S, block))
    tensors = [in_hbm(x, interpret) for x in cache if x is not None]

    def per_slot(lanes: int) -> pl.BlockSpec:
        shape = (None, K // cores, rows, lanes)
        return pl.BlockSpec(shape, lambda core, i, slot, *_: (slot[i], core, 0, 0))

    outs = [jax.ShapeDtypeStruct((B, K, rows, lanes), jnp.float32) for lanes in (C, LANES)]
    o, stats = pl.pallas_call(
        functools.partial(_tpu_kernel, block=block, whole=S % block == 0, soft_cap=soft_cap),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(cores, num_items),
            in_specs=[
                per_slot(C),
                *[pl.BlockSpec((None, K // cores, block, C), _vectors)] * 2,
                *[pl.BlockSpec((None, K, block), _scales)] * (len(tensors) - 2),
            ],
            out_specs=[per_slot(C), per_slot(LANES)],
            scratch_shapes=[
                pltpu.VMEM((K // cores, rows, lanes), jnp.float32) for lanes in (C, LANES, LANES)
            ],
        ),
        out_shape=outs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="ragged_decode",
    )(*work, length_B, jnp.arange(B) if row_B is None else row_B, q, *tensors)
    return _of_filled(o[:, :, :h], stats[:, :, :h], length_B)


def _of_filled(o_BKhC: jax.Array, stats_BKhL: jax.Array, length_B: jax.Array) -> Partial:
    """The kernel's results; nothing of slots without positions, which it leaves as they are."""
    B, K, h, C = o_BKhC.shape
    filled = (length_B > 0)[:, None, None]
    m, total = (
        jnp.where(filled, stats_BKhL[..., i], empty).reshape(B, K * h)
        for i, empty in enumerate((NEG, 0.0))
    )
    return Partial(jnp.where(filled[..., None], o_BKhC, 0.0).reshape(B, K * h, C), m, total)


def _vectors(
    core: jax.Array, i: jax.Array, slot: Any, number: Any, length: Any, row: Any
) -> tuple[Any, ...]:
    """Index map of keys and values: the block of work item i."""
    return row[slot[i]], core, number[i], 0


def _scales(
    core: jax.Array, i: jax.Array, slot: Any, number: Any, length: Any, row: Any
) -> tuple[Any, ...]:
    """Index map of the scales: the block of work item i, for all heads."""
    return row[slot[i]], 0, number[i]


def _work(
    length_B: jax.Array, block: int, max_blocks: int
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Returns slot and block number of every non-empty block, slot by slot, and their count (at
    least 1).
    """
    num_blocks_B = -(-length_B // block)
    end_B = jnp.cumsum(num_blocks_B)
    item_N = jnp.arange(length_B.shape[0] * max_blocks, dtype=jnp.int32)
    slot_N = jnp.minimum((end_B[None] <= item_N[:, None]).sum(axis=1), length_B.shape[0] - 1)
    return (slot_N, item_N - (end_B - num_blocks_B)[slot_N]), jnp.maximum(end_B[-1], 1)


def _tpu_kernel(
    slot_ref: Any,
    number_ref: Any,
    length_ref: Any,
    row_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    *refs: Any,
    block: int,
    whole: bool,
    soft_cap: float,
) -> None:
    """Processes one block of one slot's row, for a core's share of the heads. A slot's last block
    writes its result.
    """
    *scale_refs, o_ref, stats_ref, acc_ref, m_ref, total_ref = refs
    core, i = pl.program_id(0), pl.program_id(1)
    number, length = number_ref[i], length_ref[slot_ref[i]]
    heads, _, C = q_ref.shape

    @pl.when(number == 0)
    def _() -> None:
        acc_ref[...] = jnp.zeros_like(acc_ref)
        m_ref[...] = jnp.full_like(m_ref, NEG)
        total_ref[...] = jnp.zeros_like(total_ref)

    q = q_ref[...]
    k, v = (x[...].astype(q.dtype) for x in (k_ref, v_ref))
    if not whole:  # values beyond the array's end may be NaN
        v = jnp.where(
            number * block + lax.broadcasted_iota(jnp.int32, (1, block, 1), 1) < length, v, 0
        )
    inside = number * block + lax.broadcasted_iota(jnp.int32, (1, 1, block), 2) < length
    shares = [
        [x[first : first + heads][:, None] for first in range(0, x.shape[0], heads)]
        for x in scale_refs
    ]
    scales = [share[0] if len(share) == 1 else jnp.where(core == 0, *share) for share in shares]
    product = functools.partial(
        lax.dot_general, precision=_precision(q.dtype), preferred_element_type=jnp.float32
    )
    scores = product(q, k, (((2,), (2,)), ((0,), (0,)))) * C**-0.5

    def weigh(e: jax.Array) -> jax.Array:
        return product(e.astype(q.dtype), v, (((2,), (1,)), ((0,), (0,))))

    acc, m, total = _add_block(
        (acc_ref[...], m_ref[..., :1], total_ref[..., :1]), scores, inside, scales, weigh, soft_cap
    )
    acc_ref[...] = acc
    m_ref[...] = jnp.broadcast_to(m, m_ref.shape)
    total_ref[...] = jnp.broadcast_to(total, total_ref.shape)

    @pl.when((number + 1) * block >= length)
    def _() -> None:
        o_ref[...] = acc / jnp.maximum(total, 1e-30)
        lane = lax.broadcasted_iota(jnp.int32, stats_ref.shape, 2)
        stats_ref[...] = jnp.where(lane == 0, m, total)


def _add_block(
    carry: Carry,
    scores: jax.Array,
    inside: jax.Array,
    scales: Any,
    weigh: Callable[[jax.Array], jax.Array],
    soft_cap: float,
) -> Carry:
    """Adds a block to the carry.

    Args:
        carry: weighted values, max and sum so far.
        scores: scores of the block, [..., heads, positions].
        inside: which positions count.
        scales: scales of keys and values of an int8 cache, or empty.
        weigh: multiplies weights by the block's values.
        soft_cap: cap of the scores.
    """
    acc, m, total = carry
    k_scale, v_scale = scales or (None, None)
    scores = capped(scores if k_scale is None else scores * k_scale, soft_cap)
    scores = jnp.where(inside, scores, NEG)
    top = jnp.maximum(m, scores.max(axis=-1, keepdims=True))
    e = jnp.where(inside, jnp.exp(scores - top), 0.0)
    shrink = jnp.exp(m - top)
    weights = e if v_scale is None else jnp.where(inside, e * v_scale, 0.0)
    return acc * shrink + weigh(weights), top, total * shrink + e.sum(axis=-1, keepdims=True)


def _precision(dtype: Any) -> lax.Precision | None:
    """Returns the precision of products: exact for float32."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


def in_hbm(x: jax.Array, interpret: bool) -> jax.Array:
    """Keeps the compiler from copying the array into faster memory before a kernel that reads parts
    of it.
    """
    return x if interpret else pltpu.with_memory_space_constraint(x, pltpu.HBM)
