"""Gated DeltaNet (arXiv 2412.06464): attention with a state of fixed size in place of keys and
values of all tokens before.

Each head has a state S [key channels, value channels]. With keys and queries of length 1, a token
writes and reads:

    S <- exp(g) S;  S <- S + k (b (v - S^T k))^T;  o = S^T q

so that S^T k becomes a mixture of what it was and of v. Queries, keys and values first pass a
causal convolution over the last tokens. `step` is one token, `chunked` many: within a chunk of
tokens, all outputs follow from products of matrices, and states only pass from chunk to chunk.
States and everything that leads to them are float32.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from p2o_jax.models.sharding import BATCH_AXES, num_shards
from p2o_jax.models.spec import DeltaNet

CHUNK = 64  # tokens of a chunk, a power of two
_EXACT = lax.Precision.HIGHEST  # TPUs would multiply float32 as bfloat16


class DeltaState(NamedTuple):
    """What a layer keeps of each sequence: the state, and the last inputs of the convolution."""

    state_AVkv: jax.Array
    tail_q_AKcW: jax.Array
    tail_k_AKcW: jax.Array
    tail_v_AVcW: jax.Array


class Inputs(NamedTuple):
    """Projections of new tokens, before the convolution, and its weights."""

    q_BTKc: jax.Array
    k_BTKc: jax.Array
    v_BTVc: jax.Array
    log_decay_BTV: jax.Array  # g, at most 0
    write_BTV: jax.Array  # b, 0 to 1
    conv_q_KcW: jax.Array
    conv_k_KcW: jax.Array
    conv_v_VcW: jax.Array


def empty(delta: DeltaNet, rows: int) -> DeltaState:
    """Returns the memory of sequences without tokens."""
    keys = (rows, delta.key_heads, delta.key_dim, delta.conv - 1)
    values = (rows, delta.value_heads, delta.value_dim, delta.conv - 1)
    state = (rows, delta.value_heads, delta.key_dim, delta.value_dim)
    return DeltaState(*(jnp.zeros(shape) for shape in (state, keys, keys, values)))


@jax.named_scope("delta_net")
def packed(delta: DeltaNet, new: Inputs, segment_BT: Int[Array, "B T"]) -> Float[Array, "B T V c"]:
    """Returns the output of packed rows. Every segment begins with an empty memory."""
    memory = empty(delta, len(segment_BT))
    qkv, _ = _convolved(new, memory, segment_BT)
    return chunked(*qkv, new.log_decay_BTV, new.write_BTV, memory.state_AVkv, segment_BT)[0]


def over_mesh(mesh: Mesh | None) -> Callable[[DeltaNet, Inputs, jax.Array], jax.Array]:
    """Returns `packed` for rows that are split over data and fsdp, and heads over tensor where they
    divide: each device computes its own, and nothing is sent.

    Rows that do not divide over the shards are left to the compiler.
    """
    if mesh is None or mesh.size == 1:
        return packed

    def split(delta: DeltaNet, new: Inputs, segment_BT: jax.Array) -> jax.Array:
        if len(segment_BT) % num_shards(mesh):
            return packed(delta, new, segment_BT)
        parts = mesh.shape["tensor"]
        axis, parts = ("tensor", parts) if delta.key_heads % parts == 0 else (None, 1)
        own = replace(
            delta, key_heads=delta.key_heads // parts, value_heads=delta.value_heads // parts
        )
        rows, heads = PartitionSpec(BATCH_AXES, None, axis), PartitionSpec(axis)
        run = jax.shard_map(
            functools.partial(packed, own),
            mesh=mesh,
            in_specs=(Inputs._make([rows] * 5 + [heads] * 3), PartitionSpec(BATCH_AXES)),
            out_specs=rows,
            check_vma=False,
        )
        return run(new, segment_BT)

    return split


@jax.named_scope("delta_net")
def extend(
    delta: DeltaNet, new: Inputs, memory: DeltaState, count_B: Int[Array, "B"]
) -> tuple[Float[Array, "B T V c"], DeltaState]:
    """Returns the output of more tokens of each sequence, and its memory after them.

    Args:
        delta: sizes of the layer.
        new: the tokens' projections.
        memory: the memory before them.
        count_B: how many of the tokens count; those after them are padding.
    """
    B, T = new.write_BTV.shape[:2]
    qkv, full = _convolved(new, memory, None)
    real_BT1 = (jnp.arange(T)[None] < count_B[:, None])[..., None]
    # padding leaves the state as it is
    log_decay, write = (jnp.where(real_BT1, x, 0.0) for x in (new.log_decay_BTV, new.write_BTV))
    out, state = chunked(*qkv, log_decay, write, memory.state_AVkv, jnp.ones((B, T), jnp.int32))
    tails = (_last(x, count_B, delta.conv - 1) for x in full)
    return out, DeltaState(state, *tails)


@jax.named_scope("delta_net")
def step(
    delta: DeltaNet, new: Inputs, memory: DeltaState
) -> tuple[Float[Array, "B 1 V c"], DeltaState]:
    """Returns the output of one token of each sequence, and its memory after it."""
    qkv, full = _convolved(new, memory, None)
    q, k, v = (x[:, 0] for x in qkv)  # [B, V, c]
    decay_BV, write_BV = jnp.exp(new.log_decay_BTV[:, 0]), new.write_BTV[:, 0]
    state = memory.state_AVkv * decay_BV[..., None, None]
    held = (state * k[..., None]).sum(axis=2)
    change = write_BV[..., None] * (v - held)
    state = state + k[..., None] * change[:, :, None]
    out = (state * q[..., None]).sum(axis=2)
    return out[:, None], DeltaState(state, *(_channels_first(x[:, 1:]) for x in full))


def chunked(
    q_BTVk: Float[Array, "B T V k"],
    k_BTVk: Float[Array, "B T V k"],
    v_BTVv: Float[Array, "B T V v"],
    log_decay_BTV: Float[Array, "B T V"],
    write_BTV: Float[Array, "B T V"],
    state_BVkv: Float[Array, "B V k v"],
    segment_BT: Int[Array, "B T"],
) -> tuple[Float[Array, "B T V v"], Float[Array, "B V k v"]]:
    """Returns the outputs of T tokens and the state after them.

    In a chunk with state S before it, let D_ij be the decay from token j to token i, and a_i that
    from the state; both are 0 across a segment's border. The changes u that tokens write are

        u_i = b_i (v_i - a_i S^T k_i - sum over j < i of D_ij (k_i k_j) u_j)

    a system of equations with a unit lower triangular matrix, whose inverse does not depend on S.
    Outputs are o_i = a_i S^T q_i + sum over j <= i of D_ij (q_i k_j) u_j.

    Args:
        q_BTVk: queries.
        k_BTVk: keys.
        v_BTVv: values.
        log_decay_BTV: g.
        write_BTV: b.
        state_BVkv: the state before the first token, of its segment.
        segment_BT: segment of each token; those of a segment are consecutive.
    """
    B, T = segment_BT.shape
    size = min(CHUNK, 1 << (T - 1).bit_length())
    n = -(-T // size)
    q, k, v, log_decay, write = (
        _in_chunks(x, n, size) for x in (q_BTVk, k_BTVk, v_BTVv, log_decay_BTV, write_BTV)
    )
    # padding belongs to the last segment and changes nothing
    padded = jnp.pad(segment_BT, ((0, 0), (0, n * size - T)), mode="edge")
    decay, from_state = _decays(log_decay, padded.reshape(B, n, 1, size).swapaxes(0, 1))

    later = jnp.tri(size, k=-1, dtype=bool)[None, None, None]
    keys = _product("...ic,...jc->...ij", k, k)
    inverse = _unit_lower_inverse(jnp.where(later, write[..., None] * decay * keys, 0.0))
    of_values = _product("...ij,...jv->...iv", inverse, write[..., None] * v)
    of_state = _product("...ij,...jk->...ik", inverse, (write * from_state)[..., None] * k)
    scores = decay * _product("...ic,...jc->...ij", q, k)
    kept = decay[..., -1, :, None] * k  # what each token leaves in the state after the chunk

    def chunk(state: jax.Array, x: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, from_state, of_values, of_state, scores, kept = x
        change = of_values - _product("...ik,...kv->...iv", of_state, state)
        out = from_state[..., None] * _product("...ik,...kv->...iv", q, state)
        out = out + _product("...ij,...jv->...iv", scores, change)
        state = from_state[..., -1:, None] * state + _product("...jk,...jv->...kv", kept, change)
        return state, out

    state, out = lax.scan(chunk, state_BVkv, (q, from_state, of_values, of_state, scores, kept))
    out = jnp.moveaxis(jnp.moveaxis(out, 0, 1), 2, 3)  # [B, n, size, V, v]
    return out.reshape(B, n * size, *out.shape[3:])[:, :T], state


def _in_chunks(x: jax.Array, n: int, size: int) -> jax.Array:
    """Returns [B, T, V, ...] as [n, B, V, size, ...], padded with zeros."""
    B, T = x.shape[:2]
    x = jnp.pad(x, ((0, 0), (0, n * size - T)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(jnp.moveaxis(x.reshape(B, n, size, *x.shape[2:]), 2, 3), 1, 0)


def _decays(log_decay_nBVC: jax.Array, segment_nB1C: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the decay from token j to token i of each chunk [n, B, V, i, j], and from the state
    before the chunk to token i [n, B, V, i]; 0 across a segment's border, or where j is later.
    """
    size = segment_nB1C.shape[-1]
    lower, later = (jnp.tri(size, k=k, dtype=bool)[None, None, None] for k in (0, -1))
    same = segment_nB1C[..., :, None] == segment_nB1C[..., None, :]
    # sums of g from j + 1 to i, without differences of large numbers
    sums = jnp.cumsum(jnp.where(later, log_decay_nBVC[..., :, None], 0.0), axis=-2)
    decay = jnp.where(lower & same, jnp.exp(sums), 0.0)
    before = jnp.concatenate([segment_nB1C[:1, ..., :1], segment_nB1C[:-1, ..., -1:]])
    whole = jnp.exp(jnp.cumsum(log_decay_nBVC, axis=-1))
    return decay, jnp.where(segment_nB1C == before, whole, 0.0)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, precision=_EXACT)


def _unit_lower_inverse(strict: Float[Array, "*N C C"]) -> Float[Array, "*N C C"]:
    """Returns the inverse of I + strict, a strictly lower triangular matrix whose size is a power
    of two.

    Blocks on the diagonal are inverted, of size 1, 2, 4 and so on: where blocks A and C follow each
    other with B below A, the inverse of [[A, 0], [B, C]] is [[A', 0], [-C' B A', C']]. As exact as
    substitution, but of products of whole matrices only, which every device computes fast and the
    compiler can split. (Small blocks as arrays of their own would be padded to 8 x 128 on TPUs.)
    """
    size = strict.shape[-1]
    block = jnp.arange(size)
    inverse = jnp.broadcast_to(jnp.eye(size), strict.shape)
    while size > 1:
        size //= 2
        # rows in the second block of a pair, columns in the first
        below = (block[:, None] % 2 == 1) & (block[None] == block[:, None] - 1)
        part = jnp.where(below.reshape((1,) * (strict.ndim - 2) + below.shape), strict, 0.0)
        left = _product("...ij,...jk->...ik", inverse, part)
        inverse = inverse - _product("...ij,...jk->...ik", left, inverse)
        block = block // 2
    return inverse


def _convolved(
    new: Inputs, memory: DeltaState, segment_BT: jax.Array | None
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """Returns queries, keys and values [B, T, V, c] in float32, and what they were before the
    convolution, with the tail before them [B, W - 1 + T, heads, c].

    Args:
        new: the tokens' projections.
        memory: the memory before them.
        segment_BT: segments of packed rows, whose borders the convolution does not cross; None:
            one sequence per row.
    """
    full = tuple(
        jnp.concatenate([jnp.moveaxis(tail, 3, 1), x.astype(jnp.float32)], axis=1)
        for tail, x in zip(memory[1:], new[:3], strict=True)
    )
    q, k, v = (
        _convolution(x, w.astype(jnp.float32), segment_BT)
        for x, w in zip(full, new[5:], strict=True)
    )
    repeats = v.shape[2] // k.shape[2]
    q, k = (jnp.repeat(_unit(x), repeats, axis=2) for x in (q, k))
    return (q * k.shape[-1] ** -0.5, k, v), full


def _convolution(full_BtHc: jax.Array, w_HcW: jax.Array, segment_BT: jax.Array | None) -> jax.Array:
    """Returns the causal convolution of each channel over time, activated."""
    width = w_HcW.shape[-1]
    T = full_BtHc.shape[1] - width + 1
    total = jnp.zeros_like(full_BtHc[:, :T])
    for i in range(width):  # the token that is width - 1 - i before
        part = full_BtHc[:, i : i + T] * w_HcW[None, None, ..., i]
        if segment_BT is not None:
            distance = width - 1 - i
            earlier = jnp.pad(segment_BT, ((0, 0), (distance, 0)), constant_values=-1)[:, :T]
            part = jnp.where((earlier == segment_BT)[..., None, None], part, 0.0)
        total = total + part
    return jax.nn.silu(total)


def _unit(x: jax.Array) -> jax.Array:
    return x * lax.rsqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6)


def _channels_first(x_BWHc: jax.Array) -> jax.Array:
    return jnp.moveaxis(x_BWHc, 1, 3)


def _last(full_BtHc: jax.Array, count_B: jax.Array, width: int) -> jax.Array:
    """Returns the inputs of the last `width` real tokens, as a tail."""

    def one(full: jax.Array, count: jax.Array) -> jax.Array:
        return lax.dynamic_slice_in_dim(full, count, width)

    return _channels_first(jax.vmap(one)(full_BtHc, count_B))
