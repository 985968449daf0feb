"""The device side of sampling: prefill of distinct prompts into a bank, and one jitted loop that decodes all rollouts.

    bank   k, v of each layer [M, K, P, C]   one row per distinct prompt, all but its last token
    slots  k, v of each layer [B, K, S, C]   generated tokens only; row b writes at its age
    row    token, age, rollout, active [B]; head of the queue; out tokens and log-probs [N, S], lengths [N]

A fresh slot feeds the prompt's last token, so that refilling a finished slot is index arithmetic inside the loop: no cache is
copied, nothing compiles, the host is not visited, and each rollout runs exactly once. All of this is per shard of the mesh's
data x fsdp axes: each shard owns its prompts, its queue and its slots.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from p2o_jax.models import attention, transformer
from p2o_jax.models.sharding import BATCH_AXES
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rollout.sampling import Knobs, draw

Cache = tuple[tuple[jax.Array, jax.Array], ...]  # (k, v) of each layer


class Queue(NamedTuple):
    """What a shard is to sample: N rollouts of M prompts, of which the first `size` are real."""

    last_token_M: jax.Array
    length_M: jax.Array  # prompt tokens, the last included
    prompt_N: jax.Array  # row of the bank
    name_N2: jax.Array  # uint32 words of the rollout's stable name
    size: jax.Array  # [1]


class Out(NamedTuple):
    """What a shard sampled. `busy` and `steps` ([1] each) are slots in use, summed over steps, and steps of the loop."""

    token_NS: jax.Array
    logp_NS: jax.Array
    length_N: jax.Array
    busy: jax.Array
    steps: jax.Array


class _Loop(NamedTuple):
    token_B: jax.Array
    age_B: jax.Array
    rollout_B: jax.Array
    active_B: jax.Array
    head: jax.Array
    going: jax.Array
    slots: Cache
    out: Out


def empty_cache(spec: ModelSpec, rows: int, positions: int, dtype: Any) -> Cache:
    """Zeros of one row of k and v per sequence, for each layer."""
    shape = (rows, spec.kv_heads, positions, spec.head_dim)
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(spec.layers))


def prefill(
    spec: ModelSpec, weights: Any, bank: Cache, token_MP: jax.Array, length_M: jax.Array, first_row: jax.Array, dtype: Any
) -> Cache:
    """The bank with k and v of these prompts in rows first_row, first_row + 1, … (tokens beyond a prompt's length are ignored later)."""
    P = token_MP.shape[1]
    inside_MP = jnp.arange(P)[None] < length_M[:, None]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, _: Any) -> tuple[jax.Array, Any]:
        return attention.packed(q, k, v, inside_MP.astype(jnp.int32)), (k, v)

    positions = jnp.broadcast_to(jnp.arange(P)[None], token_MP.shape)
    _, fresh = transformer.hidden(spec, weights, token_MP, positions, attend, dtype=dtype)

    def into(bank_MKPC: jax.Array, fresh_MPKC: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice(bank_MKPC, fresh_MPKC.swapaxes(1, 2), (first_row, 0, 0, 0))

    return tuple((into(bank_k, k), into(bank_v, v)) for (bank_k, bank_v), (k, v) in zip(bank, fresh, strict=True))


def decode(
    spec: ModelSpec,
    weights: Any,
    bank: Cache,
    queue: Queue,
    stop_V: jax.Array,
    call_key: jax.Array,
    how: Knobs,
    max_new: jax.Array,
    *,
    num_slots: int,
    max_positions: int,
    filtered: bool,
    dtype: Any,
) -> Out:
    """Samples every rollout of the queue until its stop token (kept and scored) or `max_new` <= max_positions tokens."""
    N = queue.prompt_N.shape[0]
    count = queue.size[0]
    key_N = jax.vmap(lambda words: jax.random.fold_in(jax.random.fold_in(call_key, words[0]), words[1]))(queue.name_N2)

    def refill(s: _Loop) -> _Loop:
        """Gives free slots the next rollouts of the queue, in order."""
        free_B = ~s.active_B
        candidate_B = s.head + jnp.cumsum(free_B) - 1
        fill_B = free_B & (candidate_B < count)
        rollout_B = jnp.where(fill_B, candidate_B, s.rollout_B)
        first_B = queue.last_token_M[queue.prompt_N[jnp.minimum(rollout_B, N - 1)]]
        return s._replace(
            token_B=jnp.where(fill_B, first_B, s.token_B),
            age_B=jnp.where(fill_B, 0, s.age_B),
            rollout_B=rollout_B,
            active_B=s.active_B | fill_B,
            head=s.head + fill_B.sum(),
        )

    def step(s: _Loop) -> _Loop:
        s = refill(s)
        row_B = jnp.minimum(s.rollout_B, N - 1)
        logits_BV, slots = _forward_one(spec, weights, bank, s.slots, s.token_B, s.age_B, queue.prompt_N[row_B], queue.length_M, dtype)
        uniform_B = jax.vmap(lambda k, age: jax.random.uniform(jax.random.fold_in(k, age)))(key_N[row_B], s.age_B)
        token_B, logp_B = draw(logits_BV, uniform_B, how, filtered)
        age_B = s.age_B + 1
        done_B = stop_V[token_B] | (age_B >= max_new)
        into_B = jnp.where(s.active_B, s.rollout_B, N)  # row N takes what idle slots compute
        out = Out(
            s.out.token_NS.at[into_B, s.age_B].set(token_B),
            s.out.logp_NS.at[into_B, s.age_B].set(logp_B),
            s.out.length_N.at[into_B].set(age_B),
            s.out.busy + s.active_B.sum(),
            s.out.steps + 1,
        )
        active_B = s.active_B & ~done_B
        age_B = jnp.where(active_B, age_B, 0)
        going = _any_shard(active_B.any() | (s.head < count))
        return _Loop(token_B, age_B, s.rollout_B, active_B, s.head, going, slots, out)

    zeros_B = jnp.zeros(num_slots, jnp.int32)
    out = Out(
        jnp.zeros((N + 1, max_positions), jnp.int32), jnp.zeros((N + 1, max_positions)), jnp.zeros(N + 1, jnp.int32),
        jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32),
    )  # fmt: skip
    start = _Loop(
        zeros_B, zeros_B, zeros_B + N, zeros_B > 0, jnp.int32(0), _any_shard(count > 0),
        empty_cache(spec, num_slots, max_positions, dtype), out,
    )  # fmt: skip
    out = lax.while_loop(lambda s: s.going, step, start).out
    return out._replace(token_NS=out.token_NS[:N], logp_NS=out.logp_NS[:N], length_N=out.length_N[:N])


def _forward_one(
    spec: ModelSpec,
    weights: Any,
    bank: Cache,
    slots: Cache,
    token_B: jax.Array,
    age_B: jax.Array,
    prompt_B: jax.Array,
    length_M: jax.Array,
    dtype: Any,
) -> tuple[jax.Array, Cache]:
    """Logits of each slot's next token, and the slots' caches with the fed token's k and v at its age."""
    B = token_B.shape[0]
    P, S = bank[0][0].shape[2], slots[0][0].shape[2]
    prefix_B = length_M[prompt_B] - 1
    in_bank_BP = jnp.arange(P)[None] < prefix_B[:, None]
    in_slot_BS = jnp.arange(S)[None] <= age_B[:, None]
    row_B = jnp.arange(B)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        (bank_k, bank_v), (slot_k, slot_v) = cache
        slot_k = slot_k.at[row_B, :, age_B].set(k[:, 0])
        slot_v = slot_v.at[row_B, :, age_B].set(v[:, 0])
        prefix = attention.over_cache(q[:, 0], bank_k[prompt_B], bank_v[prompt_B], in_bank_BP)
        suffix = attention.over_cache(q[:, 0], slot_k, slot_v, in_slot_BS)
        return attention.merge(prefix, suffix)[:, None], (slot_k, slot_v)

    position_B1 = (prefix_B + age_B)[:, None]
    x_B1D, slots = transformer.hidden(
        spec, weights, token_B[:, None], position_B1, attend, caches=tuple(zip(bank, slots, strict=True)), dtype=dtype
    )
    return transformer.logits(spec, weights, x_B1D[:, 0]), slots


def _any_shard(going: jax.Array) -> jax.Array:
    """True while any shard is going: all must leave the loop at the same step, or collectives inside it would wait forever."""
    return lax.pmax(going.astype(jnp.int32), BATCH_AXES) > 0
