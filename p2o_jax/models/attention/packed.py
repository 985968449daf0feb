"""Attention over packed rows without [T, T] scores: a function per kind of device, with the
signature of `reference.packed`.

`for_mesh` chooses by the devices of the mesh, not by JAX's default backend, because programs are
also compiled for devices that are not attached. Every path falls back to `chunked` for shapes that
its kernel does not support.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from p2o_jax.models.attention import reference
from p2o_jax.models.sharding import BATCH_AXES

Attention = Callable[..., jax.Array]  # signature of `reference.packed`

DENSE_UP_TO = (
    128  # tokens in a row; shorter rows are as fast with dense scores, whose memory is small
)
QUERY_CHUNK = 64
# groups of query chunks, each with keys of a static length: about half of the scores are skipped
SPANS = 8
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
    """`reference.packed`, one chunk of queries at a time against the keys up to the end of its
    span, from the first that is in the window of one of its queries; recomputed in the backward
    pass.

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
    num_chunks = -(-T // chunk)
    padding = num_chunks * chunk - T
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q_BTHC, k_BTKC, v_BTKC))
    segment = jnp.pad(segment_BT, ((0, 0), (0, padding)))
    per_span = -(-num_chunks // SPANS)
    parts = []
    for first in range(0, num_chunks, per_span):
        last = min(first + per_span, num_chunks)
        begin = max(first * chunk - window + 1, 0) if window else 0
        keys = slice(begin, last * chunk)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def one(
            i: jax.Array,
            k_here: jax.Array = k[:, keys],
            v_here: jax.Array = v[:, keys],
            of_keys: jax.Array = segment[:, keys],
            begin: int = begin,
        ) -> jax.Array:
            q_here, segment_here = (
                lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1) for x in (q, segment)
            )
            start = i * chunk - begin if begin else i * chunk
            queries, keys = (q_here, segment_here), (k_here, v_here, of_keys)
            return _against(queries, start, keys, window, soft_cap, sink_H)

        if last - first == 1:
            parts.append(one(jnp.int32(first)))
        else:
            # [chunk number, B, chunk, H, C]
            outputs = lax.map(one, jnp.arange(first, last, dtype=jnp.int32))
            parts.append(jnp.moveaxis(outputs, 0, 1).reshape(q.shape[0], -1, *q.shape[2:]))
    return jnp.concatenate(parts, axis=1)[:, :T]


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
