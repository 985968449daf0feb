"""The device side of sampling: prefill of distinct prompts into a bank, and one jitted loop that decodes all rollouts.

    bank   k, v of each layer [M, K, P, C]   one row per distinct prompt, all but its last token
    slots  k, v of each layer [B, K, S, C]   generated tokens only; row b writes at its age
    row    token, age, rollout, active [B]; head of the queue; out tokens and log-probs [N, S], lengths [N]

A fresh slot feeds the prompt's last token, so that refilling a finished slot is index arithmetic inside the loop: no cache is
copied, nothing compiles, the host is not visited, and each rollout runs exactly once. When the queue is empty and half of the slots
are idle, the others are packed into half as many, and so on (`stages`). All of this is per shard of the mesh's data x fsdp axes: each
shard owns its prompts, its queue and its slots.

The prompt part of attention reads the bank in one of two ways. With `group` > 1 every prompt's row is read once for up to that many
of its rollouts (cells); else each slot gathers its prompt's row.
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
    member_N: jax.Array  # place among the rollouts of the same prompt
    name_N2: jax.Array  # uint32 words of the rollout's stable name
    size: jax.Array  # [1]


class Out(NamedTuple):
    """What a shard sampled, and its work ([1] each): slots in use and slots computed, summed over steps; and steps."""

    token_NS: jax.Array
    logp_NS: jax.Array
    length_N: jax.Array
    busy: jax.Array
    computed: jax.Array
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


def stages(num_slots: int, min_slots: int) -> tuple[int, ...]:
    """The numbers of slots that a shard decodes with: all at first, then halves down to `min_slots`."""
    sizes = [num_slots]
    while min_slots and sizes[-1] % 2 == 0 and sizes[-1] // 2 >= min_slots:
        sizes.append(sizes[-1] // 2)
    return tuple(sizes)


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
    min_slots: int,
    max_positions: int,
    group: int,
    filtered: bool,
    dtype: Any,
) -> Out:
    """Samples every rollout of the queue until its stop token (kept and scored) or `max_new` <= max_positions tokens."""
    N = queue.prompt_N.shape[0]
    size = queue.size[0]
    key_N = jax.vmap(lambda words: jax.random.fold_in(jax.random.fold_in(call_key, words[0]), words[1]))(queue.name_N2)

    def refill(s: _Loop) -> _Loop:
        """Gives free slots the next rollouts of the queue, in order."""
        free_B = ~s.active_B
        candidate_B = s.head + jnp.cumsum(free_B) - 1
        fill_B = free_B & (candidate_B < size)
        rollout_B = jnp.where(fill_B, candidate_B, s.rollout_B)
        first_B = queue.last_token_M[queue.prompt_N[jnp.minimum(rollout_B, N - 1)]]
        return s._replace(
            token_B=jnp.where(fill_B, first_B, s.token_B),
            age_B=jnp.where(fill_B, 0, s.age_B),
            rollout_B=rollout_B,
            active_B=s.active_B | fill_B,
            head=s.head + fill_B.sum(),
        )

    def step(s: _Loop, few: int) -> _Loop:
        s = refill(s)
        row_B = jnp.minimum(s.rollout_B, N - 1)
        fed = _Fed(s.token_B, s.age_B, s.active_B, queue.prompt_N[row_B], queue.member_N[row_B])
        logits_BV, slots = _forward_one(spec, weights, bank, s.slots, fed, queue.length_M, group, dtype)
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
            s.out.computed + token_B.size,
            s.out.steps + 1,
        )
        active_B = s.active_B & ~done_B
        going = _any_shard((s.head < size) | (active_B.sum() > few))
        return _Loop(token_B, jnp.where(active_B, age_B, 0), s.rollout_B, active_B, s.head, going, slots, out)

    zeros_B = jnp.zeros(num_slots, jnp.int32)
    zero = jnp.zeros(1, jnp.int32)
    tokens, logps = jnp.zeros((N + 1, max_positions), jnp.int32), jnp.zeros((N + 1, max_positions))
    out = Out(tokens, logps, jnp.zeros(N + 1, jnp.int32), zero, zero, zero)
    caches = empty_cache(spec, num_slots, max_positions, dtype)
    s = _Loop(zeros_B, zeros_B, zeros_B + N, zeros_B > 0, jnp.int32(0), _any_shard(size > 0), caches, out)
    sizes = stages(num_slots, min_slots)
    for few in (*sizes[1:], 0):
        s = lax.while_loop(lambda s: s.going, lambda s: step(s, few), s)
        s = _packed(s, few)._replace(going=_any_shard(s.active_B.any()))
    out = s.out
    return out._replace(token_NS=out.token_NS[:N], logp_NS=out.logp_NS[:N], length_N=out.length_N[:N])


def _packed(s: _Loop, few: int) -> _Loop:
    """The loop's state with the active slots, of which there are at most `few`, in the first `few` rows."""
    if few == 0:
        return s
    row_b = jnp.argsort(~s.active_B, stable=True)[:few]
    rows = (s.token_B[row_b], s.age_B[row_b], s.rollout_B[row_b], s.active_B[row_b])
    return _Loop(*rows, s.head, s.going, jax.tree.map(lambda cache: cache[row_b], s.slots), s.out)


class _Fed(NamedTuple):
    """What is fed at a step: each slot's token, its age, whether it is in use, its prompt and its place in the prompt's group."""

    token_B: jax.Array
    age_B: jax.Array
    active_B: jax.Array
    prompt_B: jax.Array
    member_B: jax.Array


def _forward_one(
    spec: ModelSpec, weights: Any, bank: Cache, slots: Cache, fed: _Fed, length_M: jax.Array, group: int, dtype: Any
) -> tuple[jax.Array, Cache]:
    """Logits of each slot's next token, and the slots' caches with the fed token's k and v at its age."""
    B = fed.token_B.shape[0]
    in_bank_M = length_M - 1
    row_B = jnp.arange(B)
    cell_B = fed.prompt_B * group + fed.member_B
    num_cells = length_M.shape[0] * group
    slot_of_cell = jnp.zeros(num_cells, jnp.int32).at[jnp.where(fed.active_B, cell_B, num_cells)].set(row_B, mode="drop")

    def prefix(q_BHC: jax.Array, bank_k: jax.Array, bank_v: jax.Array) -> attention.Partial:
        if group == 1:
            return attention.over_cache(q_BHC, attention.Cache(bank_k, bank_v), in_bank_M[fed.prompt_B], fed.prompt_B)
        return _over_bank(q_BHC, bank_k, bank_v, in_bank_M, slot_of_cell, cell_B)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        (bank_k, bank_v), (slot_k, slot_v) = cache
        slot_k = slot_k.at[row_B, :, fed.age_B].set(k[:, 0])
        slot_v = slot_v.at[row_B, :, fed.age_B].set(v[:, 0])
        suffix = attention.over_cache(q[:, 0], attention.Cache(slot_k, slot_v), fed.age_B + 1)
        return attention.merge(prefix(q[:, 0], bank_k, bank_v), suffix)[:, None], (slot_k, slot_v)

    position_B1 = (length_M[fed.prompt_B] - 1 + fed.age_B)[:, None]
    x_B1D, slots = transformer.hidden(
        spec, weights, fed.token_B[:, None], position_B1, attend, caches=tuple(zip(bank, slots, strict=True)), dtype=dtype
    )
    return transformer.logits(spec, weights, x_B1D[:, 0]), slots


def _over_bank(
    q_BHC: jax.Array, bank_k: jax.Array, bank_v: jax.Array, in_bank_M: jax.Array, slot_of_cell: jax.Array, cell_B: jax.Array
) -> attention.Partial:
    """Attention of each slot to its prompt, each row of the bank read once: the group's queries stand side by side as heads."""
    B, H, C = q_BHC.shape
    M, K = bank_k.shape[:2]

    def to_cells(x: jax.Array) -> jax.Array:  # [B, H, C] -> [M, K * group * H/K, C]
        return x[slot_of_cell].reshape(M, -1, K, H // K, C).swapaxes(1, 2).reshape(M, -1, C)

    def to_slots(x: jax.Array) -> jax.Array:  # [M, K * group * H/K, ...] -> [B, H, ...]
        rest = x.shape[2:]
        cells = x.reshape(M, K, -1, H // K, *rest).swapaxes(1, 2).reshape(-1, H, *rest)
        return cells[cell_B]

    return attention.Partial(*(to_slots(x) for x in attention.over_cache(to_cells(q_BHC), attention.Cache(bank_k, bank_v), in_bank_M)))


def _any_shard(going: jax.Array) -> jax.Array:
    """True while any shard is going: all must leave the loop at the same step, or collectives inside it would wait forever."""
    return lax.pmax(going.astype(jnp.int32), BATCH_AXES) > 0
