"""Attention over packed rows without [T, T] scores: a function per kind of device, with the
signature of `reference.packed`.

`for_mesh` chooses by the devices of the mesh, not by JAX's default backend, because programs are
also compiled for devices that are not attached. Every path falls back to `chunked` for shapes that
its kernel does not support.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from p2o_jax.models.attention import reference
from p2o_jax.models.sharding import BATCH_AXES

Attention = Callable[..., jax.Array]  # signature of `reference.packed`
Carry = TypeVar("Carry")

DENSE_UP_TO = (
    128  # tokens in a row; shorter rows are as fast with dense scores, whose memory is small
)
QUERY_CHUNK = 64
SPLASH_BLOCKS = (512, 256, 128)


def for_mesh(mesh: Mesh) -> Attention:
    """Returns the attention for rows on this mesh: flash kernels on GPU (cuDNN) and TPU (splash),
    by row length on CPU.

    GPUs that are not attached get query chunks: cuDNN's kernel cannot be traced without the
    library.
    """
    device = mesh.devices.flat[0]
    if device.platform == "tpu":
        return functools.partial(splash, mesh=mesh)
    if device.platform in ("gpu", "cuda"):
        return by_length if type(device.client).__name__ == "CompileOnlyPyClient" else cudnn
    return by_length


def by_length(
    q_BTHC: jax.Array,
    k_BTKC: jax.Array,
    v_BTKC: jax.Array,
    segment_BT: jax.Array,
    window: int = 0,
    soft_cap: float = 0.0,
    sink_H: jax.Array | None = None,
) -> jax.Array:
    """Dense attention for short rows, query chunks for long ones. For the arguments see
    `reference.packed`.
    """
    path = reference.packed if q_BTHC.shape[1] <= DENSE_UP_TO else chunked
    return path(q_BTHC, k_BTKC, v_BTKC, segment_BT, window, soft_cap, sink_H)


def chunked(
    q_BTHC: Float[Array, "B T H C"],
    k_BTKC: Float[Array, "B T K C"],
    v_BTKC: Float[Array, "B T K C"],
    segment_BT: Int[Array, "B T"],
    window: int = 0,
    soft_cap: float = 0.0,
    sink_H: Float[Array, "H"] | None = None,
    chunk: int = QUERY_CHUNK,
) -> Float[Array, "B T H C"]:
    """`reference.packed`, one chunk of queries at a time against the keys that it needs; recomputed
    in the backward pass.

    A chunk needs the keys from the first of its segments, or of its window, in any row. Their
    number is rounded up to one of a few widths, each of which is compiled. Tokens of a segment
    must be contiguous. The output at padding is finite and means nothing.

    Args:
        q_BTHC: queries.
        k_BTKC: keys.
        v_BTKC: values.
        segment_BT: segment number of each token; 0 is padding.
        window: keys that a query attends to; 0: all before it.
        soft_cap: cap of the scores.
        sink_H: score of each head's sink.
        chunk: queries of a chunk.
    """
    T = q_BTHC.shape[1]
    padding = -T % chunk
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q_BTHC, k_BTKC, v_BTKC))
    segment = jnp.pad(segment_BT, ((0, 0), (0, padding)))
    options = _Chunks(chunk, window, soft_cap)
    return lax.slice_in_dim(_in_chunks(options, q, k, v, segment, sink_H), 0, T, axis=1)


class _Chunks(NamedTuple):
    """Options of `chunked`."""

    size: int
    window: int
    soft_cap: float


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_chunks(
    chunks: _Chunks,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment: jax.Array,
    sink_H: jax.Array | None,
) -> jax.Array:
    """`chunked`, of whole chunks. The gradient is written out, so that each chunk adds to its own
    part of the gradients of keys and values, not to all of them.
    """

    def visit(width: int, i: jax.Array, out: jax.Array) -> jax.Array:
        attend, parts, _ = _chunk(chunks, width, i, (q, k, v, segment))
        return _put(out, attend(*parts, sink_H), i * chunks.size)

    return _each_chunk(chunks, segment, visit, jnp.zeros_like(q))


def _in_chunks_forward(
    chunks: _Chunks, *arrays: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    return _in_chunks(chunks, *arrays), arrays


def _in_chunks_backward(
    chunks: _Chunks, arrays: tuple[jax.Array, ...], of_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, v, segment, sink_H = arrays

    def visit(width: int, i: jax.Array, so_far: Sequence[jax.Array]) -> Sequence[jax.Array]:
        attend, parts, begin = _chunk(chunks, width, i, (q, k, v, segment))
        of_q, of_k, of_v, *of_sink = so_far
        _, gradient = jax.vjp(attend, *parts, sink_H)
        dq, dk, dv, dsink = gradient(_part(of_out, i * chunks.size, chunks.size))
        of_k, of_v = (
            _put(of, _part(of, begin, d.shape[1]) + d.astype(of.dtype), begin)
            for of, d in ((of_k, dk), (of_v, dv))
        )
        return _put(of_q, dq, i * chunks.size), of_k, of_v, *(of + dsink for of in of_sink)

    in_float32 = [jnp.zeros(x.shape, jnp.float32) for x in (k, v, sink_H) if x is not None]
    of_q, of_k, of_v, *of_sink = _each_chunk(
        chunks, segment, visit, (jnp.zeros_like(q), *in_float32)
    )
    of_sink = None if sink_H is None else of_sink[0].astype(sink_H.dtype)
    return of_q, of_k.astype(k.dtype), of_v.astype(v.dtype), None, of_sink


_in_chunks.defvjp(_in_chunks_forward, _in_chunks_backward)


def _part(x: jax.Array, begin: jax.Array, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, begin, size, axis=1)


def _put(x: jax.Array, part: jax.Array, begin: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, part, begin, axis=1)


def _chunk(
    chunks: _Chunks, width: int, i: jax.Array, arrays: tuple[jax.Array, ...]
) -> tuple[Attention, tuple[jax.Array, ...], jax.Array]:
    """Returns attention of the i-th chunk of queries to `width` chunks of keys, its own the last of
    them, as a function of queries, keys, values and sinks; the first three; and where the keys
    begin.
    """
    q, k, v, segment = arrays
    start, begin = i * chunks.size, jnp.maximum(i + 1 - width, 0) * chunks.size
    of_queries = _part(segment, start, chunks.size)
    of_keys = _part(segment, begin, width * chunks.size)

    def attend(
        q_here: jax.Array, k_here: jax.Array, v_here: jax.Array, sink_H: jax.Array | None
    ) -> jax.Array:
        queries, keys = (q_here, of_queries), (k_here, v_here, of_keys)
        return _against(queries, start - begin, keys, chunks.window, chunks.soft_cap, sink_H)

    parts = (
        _part(q, start, chunks.size),
        *(_part(x, begin, width * chunks.size) for x in (k, v)),
    )
    return attend, parts, begin


def _each_chunk(
    chunks: _Chunks,
    segment_BT: jax.Array,
    visit: Callable[[int, jax.Array, Carry], Carry],
    carry: Carry,
) -> Carry:
    """Visits every chunk of queries with the width of its keys, the narrowest first; returns what
    the last visit does. Each width is a loop, which may have no turn.
    """
    num_chunks = segment_BT.shape[1] // chunks.size
    most = min(num_chunks, -(-(chunks.window - 1) // chunks.size) + 1)
    widths = _widths(most if chunks.window else num_chunks)
    needed = jnp.minimum(_chunks_needed(segment_BT, chunks.size), widths[-1])
    place = jnp.searchsorted(jnp.array(widths), needed)
    order = jnp.argsort(place).astype(jnp.int32)
    ends = jnp.searchsorted(place[order], jnp.arange(len(widths)), side="right").astype(jnp.int32)
    begin = jnp.int32(0)
    for n, width in enumerate(widths):
        carry = lax.fori_loop(
            begin, ends[n], lambda j, carry, w=width: visit(w, order[j], carry), carry
        )
        begin = ends[n]
    return carry


def _widths(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... and `most`."""
    steps = {2**n * m // 2 for n in range(1, most.bit_length()) for m in (2, 3)}
    return sorted({1, most, *(step for step in steps if step < most)})


def _chunks_needed(segment_BT: Int[Array, "B T"], chunk: int) -> Int[Array, "num_chunks"]:
    """Returns for each chunk of queries the number of chunks of keys, the last of them its own,
    that hold all of its segments, in every row.

    Padding needs only its own chunk.
    """
    T = segment_BT.shape[1]
    position = jnp.arange(T)
    begins = jnp.pad(segment_BT[:, 1:] != segment_BT[:, :-1], ((0, 0), (1, 0)))
    first_BT = lax.cummax(jnp.where(begins, position, 0), axis=1)
    first_Bn = jnp.where(segment_BT == 0, position, first_BT)[:, ::chunk]
    return position[: T // chunk] + 1 - first_Bn.min(axis=0) // chunk


def _against(
    queries: tuple[jax.Array, jax.Array],
    start: jax.Array,
    keys: tuple[jax.Array, jax.Array, jax.Array],
    window: int,
    soft_cap: float,
    sink_H: jax.Array | None,
) -> jax.Array:
    """Causal attention of a chunk of queries to S keys, within segments.

    Args:
        queries: queries [B, t, H, C] of the chunk, and their segments.
        start: position of the chunk, from the first key.
        keys: keys [B, S, K, C], values, and their segments.
        window: keys that a query attends to; 0: all before it.
        soft_cap: cap of the scores.
        sink_H: score of each head's sink.
    """
    (q_BtHC, segment_Bt), (k_BSKC, v_BSKC, segment_BS) = queries, keys
    B, t, H, C = q_BtHC.shape
    S, K = k_BSKC.shape[1:3]
    scores = (
        jnp.einsum(
            "BtKhC,BSKC->BKhtS",
            q_BtHC.reshape(B, t, K, H // K, C),
            k_BSKC,
            preferred_element_type=jnp.float32,
        )
        * C**-0.5
    )
    earlier = jnp.arange(S)[None] <= start + jnp.arange(t)[:, None]
    if window:
        earlier &= jnp.arange(S)[None] > start + jnp.arange(t)[:, None] - window
    visible = (segment_Bt[:, :, None] == segment_BS[:, None, :]) & earlier[None]
    scores = reference.capped(scores, soft_cap)
    scores = jnp.where(visible[:, None, None], scores, reference.NEG)
    probs = reference.softmax(scores, sink_H).astype(v_BSKC.dtype)
    return jnp.einsum("BKhtS,BSKC->BtKhC", probs, v_BSKC).reshape(B, t, H, C)


def cudnn(
    q_BTHC: jax.Array,
    k_BTKC: jax.Array,
    v_BTKC: jax.Array,
    segment_BT: jax.Array,
    window: int = 0,
    soft_cap: float = 0.0,
    sink_H: jax.Array | None = None,
    kernel: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """cuDNN's flash attention, causal, with segments and window as a [B, 1, T, T] mask (its public
    interface has no segment ids). It has neither soft cap nor sinks.

    Args:
        q_BTHC: queries.
        k_BTKC: keys.
        v_BTKC: values.
        segment_BT: segment number of each token; 0 is padding.
        window: keys that a query attends to; 0: all before it.
        soft_cap: cap of the scores.
        sink_H: score of each head's sink.
        kernel: implementation of `jax.nn.dot_product_attention`.
    """
    T, C = q_BTHC.shape[1], q_BTHC.shape[-1]
    supported = q_BTHC.dtype in (jnp.bfloat16, jnp.float16) and C % 8 == 0 and C <= 128
    if not supported or soft_cap or sink_H is not None:
        return by_length(q_BTHC, k_BTKC, v_BTKC, segment_BT, window, soft_cap, sink_H)
    same = (segment_BT[:, :, None] == segment_BT[:, None, :])[:, None]
    if window and window < T:
        same &= reference.causal(T, window)[None, None]
    return jax.nn.dot_product_attention(
        q_BTHC, k_BTKC, v_BTKC, mask=same, is_causal=True, implementation=kernel
    )


def splash(
    q_BTHC: jax.Array,
    k_BTKC: jax.Array,
    v_BTKC: jax.Array,
    segment_BT: jax.Array,
    window: int = 0,
    soft_cap: float = 0.0,
    sink_H: jax.Array | None = None,
    *,
    mesh: Mesh,
    interpret: bool = False,
) -> jax.Array:
    """TPU splash attention with segment ids; each device computes its rows (data x fsdp) and heads
    (tensor). It has no sinks.

    Args:
        q_BTHC: queries.
        k_BTKC: keys.
        v_BTKC: values.
        segment_BT: segment number of each token; 0 is padding.
        window: keys that a query attends to; 0: all before it.
        soft_cap: cap of the scores.
        sink_H: score of each head's sink.
        mesh: the mesh of the rows.
        interpret: run the kernel's interpreter, for tests on CPU.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

    (_, T, H, C), K, split = q_BTHC.shape, k_BTKC.shape[2], mesh.shape["tensor"]
    block = next((b for b in SPLASH_BLOCKS if T % b == 0), 0)
    if not block or C % 128 or sink_H is not None:
        return chunked(q_BTHC, k_BTKC, v_BTKC, segment_BT, window, soft_cap, sink_H)
    if K % split:  # every device holds all key/value heads, but only some query heads
        k_BTKC, v_BTKC = (jnp.repeat(x, H // K, axis=2) for x in (k_BTKC, v_BTKC))
    attend = _splash_kernel(T, H // split, block, window, soft_cap, interpret)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segment: jax.Array) -> jax.Array:
        q = (q.astype(jnp.float32) * C**-0.5).astype(q.dtype)
        heads_first = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        return jnp.swapaxes(
            jax.vmap(attend)(*heads_first, kernels.SegmentIds(q=segment, kv=segment)), 1, 2
        )

    heads = PartitionSpec(BATCH_AXES, None, "tensor", None)
    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(heads, heads, heads, PartitionSpec(BATCH_AXES)),
        out_specs=heads,
        check_vma=False,
    )
    return sharded(q_BTHC, k_BTKC, v_BTKC, segment_BT)


def _splash_kernel(
    T: int, heads: int, block: int, window: int, soft_cap: float, interpret: bool
) -> Any:
    """The kernel for `heads` causal heads over T positions, in blocks of `block`."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    causal = masks.CausalMask((T, T))
    if window and window < T:
        causal = masks.LocalMask((T, T), (window - 1, 0), 0)
    return kernels.make_splash_mha(
        masks.MultiHeadMask([causal] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        attn_logits_soft_cap=soft_cap or None,
        interpret=interpret,
    )
