"""The device side of sampling: a jitted loop that decodes the rollouts of a prompt cache, one chunk
of steps per call.

    prompt cache   k, v of each layer [M, K, P, C]: a row per distinct prompt, without its last
                   token (`prefill`)
    slots          k, v of each layer [B, K, S, C]: generated tokens only, in spans of positions;
                   slot b writes at its age; or a ring of a layer's sliding window (`layer_caches`)
    slot state     token, age, rollout, active [B]
    results        tokens, log-probs and choices of experts (if recorded) [N, R], lengths [N]

A new rollout starts by feeding the prompt's last token. Refilling a finished slot is thus index
arithmetic inside the loop: no cache is copied, nothing is compiled, the host is not involved, and
each rollout runs exactly once. A chunk ends when a given number of rollouts have finished; the host
processes them while the next chunk runs. A chunk also ends when the queue is empty and the active
slots fit into `next_slots`, so that `pack` can move them into a smaller program. All of this
happens per shard of the mesh's data x fsdp axes: each shard owns its prompts, its queue and its
slots.

Attention reads the prompt cache in one of two ways. With `group` > 1, each prompt's row is read
once for up to that many of its rollouts (cells). Otherwise each slot reads its prompt's row; on CPU
it reads a copy, which is made when the slot is filled.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from p2o_jax.models import delta_net, experts, transformer
from p2o_jax.models.attention import decoding, reference
from p2o_jax.models.attention.decoding import Spans
from p2o_jax.models.attention.reference import Cache, Partial
from p2o_jax.models.delta_net import DeltaState
from p2o_jax.models.layer import Heads, Mixing
from p2o_jax.models.sharding import BATCH_AXES
from p2o_jax.models.spec import DeltaNet, LayerType, ModelSpec
from p2o_jax.rollout import layer_caches
from p2o_jax.rollout.decode_state import DecodeChunk, DecodeState, Queue, SlotState
from p2o_jax.rollout.layer_caches import Caches
from p2o_jax.rollout.refill import refilled
from p2o_jax.rollout.token_sampling import SamplingScalars, draw


class DecodeOptions(NamedTuple):
    """Options that are compiled into a decode program.

    Args:
        chunk_rollouts: a chunk ends when a shard has finished this many rollouts.
        next_slots: a chunk ends when no queue is left and at most this many slots are active; 0:
            decode to the end.
        group: rollouts that read a row of the prompt cache together; 1: each slot reads its own.
        filtered: whether top-k, top-p or min-p may be on.
        cache_ops: how this kind of device reads and writes caches.
        mix_experts: see `layer.Mixing`.
        longest: tokens of the longest sequence, which decides which layers have a ring.
        record_experts: whether the experts that compute each token are recorded.
    """

    chunk_rollouts: int
    next_slots: int
    group: int
    filtered: bool
    cache_ops: decoding.CacheOps
    mix_experts: experts.Mixture
    longest: int
    record_experts: bool = False


class _Inputs(NamedTuple):
    """The arguments of a decode call that stay the same in all of its steps."""

    weights: Any
    prompt_cache: Caches
    queue: Queue
    key_N: jax.Array
    stop_V: jax.Array
    sampling: SamplingScalars
    max_new: jax.Array


class _Loop(NamedTuple):
    state: DecodeState
    continues: jax.Array
    busy: jax.Array
    steps: jax.Array


def decode_chunk(
    spec: ModelSpec,
    weights: Any,
    prompt_cache: Caches,
    queue: Queue,
    state: DecodeState,
    stop_V: jax.Array,
    call_key: jax.Array,
    sampling: SamplingScalars,
    max_new: jax.Array,
    *,
    options: DecodeOptions,
) -> tuple[DecodeState, DecodeChunk]:
    """Decodes until a shard has finished `chunk_rollouts` more rollouts, or no shard has a queue or
    more than `next_slots` active slots.

    A rollout ends with its stop token, which is kept and scored, or at `max_new` or its own limit.

    Args:
        spec: the model.
        weights: params in rollout layout.
        prompt_cache: keys and values of the prompts, of each layer.
        queue: the rollouts to sample.
        state: result of `begin`, `pack` or the previous chunk.
        stop_V: which tokens end a rollout.
        call_key: raw key data of the sampling call.
        sampling: temperature and filters.
        max_new: limit of response tokens, at most the allocated positions.
        options: static options.

    Returns:
        The new state, and the rollouts that finished in this chunk.
    """
    B, size = state.slots.token_B.size, queue.size[0]
    call = _Inputs(
        weights,
        prompt_cache,
        queue,
        _rollout_keys(call_key, queue.name_N2),
        stop_V,
        sampling,
        max_new,
    )
    first = state.finished[0]

    def continues(state: DecodeState) -> jax.Array:
        return _any_shard_continues(state, size, first, options)

    def step(loop: _Loop) -> _Loop:
        before, after = _step(spec, call, loop.state, options)
        return _Loop(
            after, continues(after), loop.busy + before.slots.active_B.sum(), loop.steps + 1
        )

    zero = jnp.zeros(1, jnp.int32)
    state, _, busy, steps = lax.while_loop(
        lambda loop: loop.continues, step, _Loop(state, continues(state), zero, zero)
    )
    limit = min(options.chunk_rollouts + B, queue.prompt_N.size)
    return state, _chunk(state, size, first, limit, (busy, steps * B, steps))


def _rollout_keys(call_key: jax.Array, name_N2: jax.Array) -> jax.Array:
    """Returns a key per rollout that depends only on the call's key and the rollout's name."""
    key = jax.random.wrap_key_data(call_key)
    return jax.vmap(lambda words: jax.random.fold_in(jax.random.fold_in(key, words[0]), words[1]))(
        name_N2
    )


def _any_shard_continues(
    state: DecodeState, size: jax.Array, first: jax.Array, options: DecodeOptions
) -> jax.Array:
    """Whether the loop continues, the same on all shards.

    All shards must leave the loop at the same step: its collectives would otherwise wait forever
    for a shard that has left.
    """
    busy = (state.head[0] < size) | (state.slots.active_B.sum() > options.next_slots)
    full = state.finished[0] - first >= options.chunk_rollouts
    any_busy, any_full = lax.pmax(jnp.stack([busy, full]).astype(jnp.int32), BATCH_AXES) > 0
    return any_busy & ~any_full


@jax.named_scope("decode_step")
def _step(
    spec: ModelSpec, call: _Inputs, state: DecodeState, options: DecodeOptions
) -> tuple[DecodeState, DecodeState]:
    """Fills free slots and decodes one token in every slot. Returns the state before and after that
    token.
    """
    queue, N = call.queue, call.queue.prompt_N.size
    in_slot = tuple(layer_caches.in_slot(layer, options.longest) for layer in spec.layer_types)
    state = refilled(state, queue, call.prompt_cache, in_slot)
    slots = state.slots
    rollout_B = jnp.minimum(slots.rollout_B, N - 1)
    fed = _Fed(
        slots.token_B,
        slots.age_B,
        slots.active_B,
        queue.prompt_N[rollout_B],
        queue.member_N[rollout_B],
    )
    logits_BV, spans, chosen = _forward_one(spec, call, slots, fed, options)
    choice_BX = _choices(spec, options, chosen, slots.token_B.size)
    with jax.named_scope("sample_token"):
        uniform_B = jax.vmap(lambda k, age: jax.random.uniform(jax.random.fold_in(k, age)))(
            call.key_N[rollout_B], slots.age_B
        )
        token_B, logp_B = draw(logits_BV, uniform_B, call.sampling, options.filtered)
    return state, _advanced(state, call, spans, _Sampled(token_B, logp_B, choice_BX))


class _Sampled(NamedTuple):
    """What a step gives for each slot: a token, its log-prob, and the experts that computed the
    token before it, if they are recorded.
    """

    token_B: jax.Array
    logp_B: jax.Array
    choice_BX: jax.Array


@jax.named_scope("advance")
def _advanced(
    state: DecodeState, call: _Inputs, spans: tuple[Spans, ...], new: _Sampled
) -> DecodeState:
    """Returns the state with the sampled tokens recorded and finished slots freed."""
    slots, N = state.slots, state.length_N.size
    age_B = slots.age_B + 1
    limit_B = jnp.minimum(call.queue.limit_N[jnp.minimum(slots.rollout_B, N - 1)], call.max_new)
    done_B = slots.active_B & (call.stop_V[new.token_B] | (age_B >= limit_B))
    # results of idle slots are dropped
    into_B = jnp.where(slots.active_B, slots.rollout_B, N)
    rank_B = jnp.where(done_B, state.finished[0] + jnp.cumsum(done_B) - 1, N)
    active_B = slots.active_B & ~done_B
    return DecodeState(
        SlotState(
            new.token_B,
            jnp.where(active_B, age_B, 0),
            slots.rollout_B,
            active_B,
            spans,
            slots.prompts,
        ),
        state.head,
        state.finished + done_B.sum(),
        state.order_N.at[rank_B].set(slots.rollout_B, mode="drop"),
        state.token_NR.at[into_B, slots.age_B].set(new.token_B, mode="drop"),
        state.logp_NR.at[into_B, slots.age_B].set(new.logp_B, mode="drop"),
        state.choice_NRX.at[into_B, slots.age_B].set(new.choice_BX, mode="drop"),
        state.length_N.at[into_B].set(age_B, mode="drop"),
    )


@jax.named_scope("gather_finished")
def _chunk(
    state: DecodeState,
    size: jax.Array,
    first: jax.Array,
    limit: int,
    work: tuple[jax.Array, jax.Array, jax.Array],
) -> DecodeChunk:
    """Gathers up to `limit` rollouts that finished since number `first`; `work` is busy, computed
    and steps.
    """
    rollout_n = lax.dynamic_slice_in_dim(jnp.pad(state.order_N, (0, limit)), first, limit)
    waiting = lax.pmax(size - state.head, BATCH_AXES)
    left = lax.pmax(size - state.finished, BATCH_AXES)
    return DecodeChunk(
        rollout_n,
        state.token_NR[rollout_n],
        state.logp_NR[rollout_n],
        state.choice_NRX[rollout_n],
        state.length_N[rollout_n],
        state.finished - first,
        left,
        waiting,
        *work,
    )


class _Fed(NamedTuple):
    """Inputs of a step: each slot's token, age, whether it is active, its prompt, and its index in
    the prompt's group.
    """

    token_B: jax.Array
    age_B: jax.Array
    active_B: jax.Array
    prompt_B: jax.Array
    member_B: jax.Array


def _forward_one(
    spec: ModelSpec, call: _Inputs, slots: SlotState, fed: _Fed, options: DecodeOptions
) -> tuple[jax.Array, tuple[Spans, ...], tuple[jax.Array, ...]]:
    """Returns the logits of each slot's next token, the slots' caches with the fed token's k and v
    at its age, and the experts that computed it in each layer with experts, if they are recorded.
    """
    weights, length_M, cache_ops = call.weights, call.queue.length_M, options.cache_ops
    group = options.group
    in_prompt_cache_M = length_M - 1
    slot_B = jnp.arange(fed.token_B.size)
    in_prompt_B, in_slot_B = (
        jnp.where(fed.active_B, in_prompt_cache_M[fed.prompt_B], 0),
        jnp.where(fed.active_B, fed.age_B + 1, 1),
    )
    cell_B = fed.prompt_B * group + fed.member_B
    num_cells = length_M.size * group
    slot_of_cell = (
        jnp.zeros(num_cells, jnp.int32)
        .at[jnp.where(fed.active_B, cell_B, num_cells)]
        .set(slot_B, mode="drop")
    )

    def over_prompts(q_BHC: jax.Array, prompts: Cache, soft_cap: float) -> Partial:
        if group > 1:
            attend = functools.partial(cache_ops.attend, soft_cap=soft_cap)
            return _over_cells(q_BHC, prompts, in_prompt_cache_M, slot_of_cell, cell_B, attend)
        row_B = None if slots.prompts else fed.prompt_B
        return cache_ops.attend(q_BHC, prompts, in_prompt_B, row_B, soft_cap)

    def attend(
        layer: LayerType, new: Heads, caches: tuple[Cache, Spans]
    ) -> tuple[jax.Array, Spans]:
        (q, k, v, sinks), (prompts, spans) = new, caches
        cap, ring = layer.soft_cap, layer_caches.ring(layer, options.longest)
        fed_kv = reference.stored(k.swapaxes(1, 2), v.swapaxes(1, 2), spans[0])
        if ring:
            position_B = position_B1[:, 0]
            spans = decoding.append(cache_ops, spans, fed_kv, position_B % ring)
            kept_B = jnp.where(fed.active_B, jnp.minimum(position_B + 1, ring), 1)
            own = decoding.over_spans(cache_ops, q[:, 0], spans, kept_B, cap)
        else:
            spans = decoding.append(cache_ops, spans, fed_kv, fed.age_B)
            own = decoding.over_spans(cache_ops, q[:, 0], spans, in_slot_B, cap)
            own = reference.merge(over_prompts(q[:, 0], prompts, cap), own)
        return reference.with_sink(own, sinks).o_BHC[:, None], spans

    position_B1 = (in_prompt_cache_M[fed.prompt_B] + fed.age_B)[:, None]
    dtype = weights["final_norm"].dtype
    caches = tuple(zip(slots.prompts or call.prompt_cache, slots.spans, strict=True))
    x_B1D, spans, chosen = transformer.hidden(
        spec,
        weights,
        fed.token_B[:, None],
        position_B1,
        Mixing(attend, _recur, options.mix_experts, _chosen if options.record_experts else None),
        caches=caches,
        dtype=dtype,
    )
    return transformer.logits(spec, weights, x_B1D[:, 0]), spans, chosen


def _chosen(routed: experts.Routed, _: jax.Array | None) -> jax.Array:
    return routed.expert_Nk


def _choices(
    spec: ModelSpec, options: DecodeOptions, chosen: tuple[jax.Array, ...], num_slots: int
) -> jax.Array:
    """Returns the chosen experts, as `experts.choices_of_token` says, [B, X]."""
    choice = experts.choices_of_token(spec, options.record_experts)
    if not chosen:
        return jnp.zeros((num_slots, *choice.shape), choice.dtype)
    return (jnp.concatenate(chosen, axis=1) + 1).astype(choice.dtype)


def _recur(
    delta: DeltaNet, new: delta_net.Inputs, caches: tuple[Any, DeltaState]
) -> tuple[jax.Array, DeltaState]:
    """Returns the output of the fed tokens, and the slots' states after them."""
    return delta_net.step(delta, new, caches[1])


def _over_cells(
    q_BHC: jax.Array,
    prompt_cache: Cache,
    in_prompt_cache_M: jax.Array,
    slot_of_cell: jax.Array,
    cell_B: jax.Array,
    attend: decoding.Decode,
) -> Partial:
    """Returns each slot's attention to its prompt, reading each row of the prompt cache once.

    The queries of a group are arranged side by side, as additional heads of the prompt's row.

    Args:
        q_BHC: queries of the slots.
        prompt_cache: one layer's cache of the M prompts.
        in_prompt_cache_M: cached tokens of each prompt.
        slot_of_cell: the slot in each of the M * group cells.
        cell_B: the cell of each slot.
        attend: attention to a cache.
    """
    _, H, C = q_BHC.shape
    M, K = prompt_cache.v_AKSC.shape[:2]

    def to_cells(x: jax.Array) -> jax.Array:  # [B, H, C] -> [M, K * group * H/K, C]
        return x[slot_of_cell].reshape(M, -1, K, H // K, C).swapaxes(1, 2).reshape(M, -1, C)

    def to_slots(x: jax.Array) -> jax.Array:  # [M, K * group * H/K, ...] -> [B, H, ...]
        rest = x.shape[2:]
        cells = x.reshape(M, K, -1, H // K, *rest).swapaxes(1, 2).reshape(-1, H, *rest)
        return cells[cell_B]

    return Partial(
        *(to_slots(x) for x in attend(to_cells(q_BHC), prompt_cache, in_prompt_cache_M, None))
    )
