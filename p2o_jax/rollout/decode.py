"""The device side of sampling: one jitted loop that decodes the rollouts of a prompt cache of
prompts, a stretch at a time.

    prompt cache   k, v of each layer [M, K, P, C]   one row per distinct prompt, all but its last token (`prefill`)
    slots  k, v of each layer [B, K, S, C]   generated tokens only, in spans of positions; row b writes at its age
    row    token, age, rollout, active [B]; head of the queue; out tokens and log-probs [N, S], lengths [N]

A fresh slot feeds the prompt's last token, so that refilling a finished slot is index arithmetic
inside the loop: no cache is copied, nothing compiles, the host is not visited, and each rollout
runs exactly once. A stretch ends when so many rollouts have finished, which it hands out: the host
works on those while the next stretch runs. It ends, too, when the queue is empty and the active
slots fit into `few`, so that they can be packed into so many (`pack`). All of this is per shard of
the mesh's data x fsdp
axes: each shard owns its prompts, its queue and its slots.

The prompt part of attention reads the prompt cache in one of two ways. With `group` > 1 every
prompt's row is read once for up to that many of its rollouts (cells); else each slot reads its
prompt's row, or on CPU a copy of it that is made when the slot is filled.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from p2o_jax.models import transformer
from p2o_jax.models.attention import decoding, reference
from p2o_jax.models.attention.decoding import Spans
from p2o_jax.models.attention.reference import Cache, Partial
from p2o_jax.models.sharding import BATCH_AXES
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rollout.token_sampling import SamplingScalars, draw

Caches = tuple[Cache, ...]  # of each layer


class Queue(NamedTuple):
    """What a shard is to sample: N rollouts of M prompts, of which the first `size` are real."""

    last_token_M: jax.Array
    length_M: jax.Array  # prompt tokens, the last included
    prompt_N: jax.Array  # row of the prompt cache
    member_N: jax.Array  # place among the rollouts of the same prompt
    name_N2: jax.Array  # uint32 words of the rollout's stable name
    size: jax.Array  # [1]


class SlotState(NamedTuple):
    """What there is of each slot."""

    token_B: jax.Array
    age_B: jax.Array
    rollout_B: jax.Array
    active_B: jax.Array
    slots: tuple[Spans, ...]  # of each layer
    prompts: (
        Caches  # copies of rows of the prompt cache; none where the prompt cache itself is read
    )


class DecodeState(NamedTuple):
    """A shard's place in its queue, its slots, and what it has sampled; from one stretch to the
    next.
    """

    rows: SlotState
    head: jax.Array  # [1]: rollouts begun
    finished: jax.Array  # [1]
    order_N: jax.Array  # rollouts as they finished
    token_NS: jax.Array
    logp_NS: jax.Array
    length_N: jax.Array


class DecodeChunk(NamedTuple):
    """What a shard finished in a stretch, up to F rollouts, of which the first `number` are
    real; the rest is [1] each.
    """

    rollout_F: jax.Array
    token_FS: jax.Array
    logp_FS: jax.Array
    length_F: jax.Array
    number: jax.Array
    left: jax.Array  # rollouts in the queue or in slots, of the fullest shard
    waiting: jax.Array  # of these, in a queue
    busy: jax.Array  # slots in use and slots computed, each summed over steps; and steps
    computed: jax.Array
    steps: jax.Array


class _Loop(NamedTuple):
    run: DecodeState
    going: jax.Array
    busy: jax.Array
    steps: jax.Array


def empty_caches(
    spec: ModelSpec, rows: int, positions: int, dtype: Any, kind: type[Cache] = Cache
) -> Caches:
    """A cache for each layer."""
    return tuple(
        reference.empty_cache(rows, spec.kv_heads, positions, spec.head_dim, dtype, kind)
        for _ in range(spec.layers)
    )


def begin(
    spec: ModelSpec,
    num_slots: int,
    num_rollouts: int,
    max_positions: int,
    dtype: Any,
    kept: decoding.Kind,
    prompt_positions: int = 0,
) -> DecodeState:
    """Idle slots, nothing sampled; with room for copies of prompts of `prompt_positions`, if
    there are to be any.
    """
    zeros_B, zero = jnp.zeros(num_slots, jnp.int32), jnp.zeros(1, jnp.int32)
    positions = -(-max_positions // 8) * 8  # as kernels want them
    prompts = (
        empty_caches(spec, num_slots, prompt_positions, dtype, kept.cache)
        if prompt_positions
        else ()
    )
    spans = [
        empty_caches(spec, num_slots, span, dtype, kept.cache)
        for span in decoding.spans_of(kept, positions)
    ]
    rows = SlotState(
        zeros_B, zeros_B, zeros_B, zeros_B > 0, tuple(zip(*spans, strict=True)), prompts
    )
    zeros_N = jnp.zeros(num_rollouts, jnp.int32)
    tokens, logps = (
        jnp.zeros((num_rollouts, max_positions), jnp.int32),
        jnp.zeros((num_rollouts, max_positions)),
    )
    return DecodeState(rows, zero, zero, zeros_N, tokens, logps, zeros_N)


def pack(rows: SlotState, num_slots: int) -> SlotState:
    """The active slots, of which there are at most `num_slots`, as so many."""
    row_b = jnp.argsort(~rows.active_B, stable=True)[:num_slots]
    return jax.tree.map(lambda x: x[row_b], rows)


def sizes(num_slots: int, min_slots: int) -> tuple[int, ...]:
    """The numbers of slots that a shard decodes with: all at first, then halves down to
    `min_slots` (0: never fewer).
    """
    found = [num_slots]
    while min_slots and found[-1] % 2 == 0 and found[-1] // 2 >= min_slots:
        found.append(found[-1] // 2)
    return tuple(found)


def decode_chunk(
    spec: ModelSpec,
    weights: Any,
    prompt_cache: Caches,
    queue: Queue,
    run: DecodeState,
    stop_V: jax.Array,
    call_key: jax.Array,
    how: SamplingScalars,
    max_new: jax.Array,
    *,
    enough: int,
    few: int,
    group: int,
    filtered: bool,
    kept: decoding.Kind,
) -> tuple[DecodeState, DecodeChunk]:
    """Samples on until a shard has finished `enough` rollouts more, or no shard has a queue or more
    than `few` active slots.

    A rollout ends with its stop token (kept and scored) or after `max_new` <= S tokens.
    """
    N, B = queue.prompt_N.size, run.rows.token_B.size
    size = queue.size[0]
    key = jax.random.wrap_key_data(call_key)
    key_N = jax.vmap(lambda words: jax.random.fold_in(jax.random.fold_in(key, words[0]), words[1]))(
        queue.name_N2
    )
    first = run.finished[0]

    def goes_on(run: DecodeState) -> jax.Array:
        """All shards leave the loop at the same step: with one of them gone, collectives inside
        it would wait forever.
        """
        busy = (run.head[0] < size) | (run.rows.active_B.sum() > few)
        full = run.finished[0] - first >= enough
        any_busy, any_full = lax.pmax(jnp.stack([busy, full]).astype(jnp.int32), BATCH_AXES) > 0
        return any_busy & ~any_full

    def step(s: _Loop) -> _Loop:
        run = _refilled(s.run, queue, prompt_cache)
        rows = run.rows
        row_B = jnp.minimum(rows.rollout_B, N - 1)
        fed = _Fed(
            rows.token_B, rows.age_B, rows.active_B, queue.prompt_N[row_B], queue.member_N[row_B]
        )
        logits_BV, slots = _forward_one(
            spec, weights, prompt_cache, rows, fed, queue.length_M, group, kept
        )
        uniform_B = jax.vmap(lambda k, age: jax.random.uniform(jax.random.fold_in(k, age)))(
            key_N[row_B], rows.age_B
        )
        token_B, logp_B = draw(logits_BV, uniform_B, how, filtered)
        age_B = rows.age_B + 1
        done_B = rows.active_B & (stop_V[token_B] | (age_B >= max_new))
        into_B = jnp.where(rows.active_B, rows.rollout_B, N)  # what idle slots compute is dropped
        rank_B = jnp.where(done_B, run.finished[0] + jnp.cumsum(done_B) - 1, N)
        active_B = rows.active_B & ~done_B
        after = DecodeState(
            SlotState(
                token_B,
                jnp.where(active_B, age_B, 0),
                rows.rollout_B,
                active_B,
                slots,
                rows.prompts,
            ),
            run.head,
            run.finished + done_B.sum(),
            run.order_N.at[rank_B].set(rows.rollout_B, mode="drop"),
            run.token_NS.at[into_B, rows.age_B].set(token_B, mode="drop"),
            run.logp_NS.at[into_B, rows.age_B].set(logp_B, mode="drop"),
            run.length_N.at[into_B].set(age_B, mode="drop"),
        )
        return _Loop(after, goes_on(after), s.busy + rows.active_B.sum(), s.steps + 1)

    zero = jnp.zeros(1, jnp.int32)
    run, _, busy, steps = lax.while_loop(
        lambda s: s.going, step, _Loop(run, goes_on(run), zero, zero)
    )
    rollout_F = lax.dynamic_slice_in_dim(
        jnp.pad(run.order_N, (0, min(enough + B, N))), first, min(enough + B, N)
    )
    waiting = lax.pmax(size - run.head, BATCH_AXES)
    left = lax.pmax(size - run.finished, BATCH_AXES)
    out = (
        rollout_F,
        run.token_NS[rollout_F],
        run.logp_NS[rollout_F],
        run.length_N[rollout_F],
        run.finished - first,
    )
    return run, DecodeChunk(*out, left, waiting, busy, steps * B, steps)


def _refilled(run: DecodeState, queue: Queue, prompt_cache: Caches) -> DecodeState:
    """The run with the next rollouts of the queue, in order, in its free slots."""
    rows = run.rows
    free_B = ~rows.active_B
    candidate_B = run.head + jnp.cumsum(free_B) - 1
    fill_B = free_B & (candidate_B < queue.size)
    rollout_B = jnp.where(fill_B, candidate_B, rows.rollout_B)
    first_B = queue.last_token_M[queue.prompt_N[jnp.minimum(rollout_B, queue.prompt_N.size - 1)]]
    filled = rows._replace(
        token_B=jnp.where(fill_B, first_B, rows.token_B),
        age_B=jnp.where(fill_B, 0, rows.age_B),
        rollout_B=rollout_B,
        active_B=rows.active_B | fill_B,
        prompts=_copied(
            rows.prompts,
            prompt_cache,
            fill_B,
            queue.prompt_N[jnp.minimum(rollout_B, queue.prompt_N.size - 1)],
        ),
    )
    return run._replace(rows=filled, head=run.head + fill_B.sum())


def _copied(
    prompts: Caches, prompt_cache: Caches, fill_B: jax.Array, prompt_B: jax.Array
) -> Caches:
    """The slots' prompts with those of the slots to fill copied from the prompt cache, one at a
    time: mostly there are few.
    """
    if not prompts:
        return prompts
    to_fill_B = jnp.argsort(~fill_B, stable=True)

    def copy(i: jax.Array, prompts: Caches) -> Caches:
        slot = to_fill_B[i]

        def one(x: jax.Array, held: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(
                x, lax.dynamic_slice_in_dim(held, prompt_B[slot], 1), slot, 0
            )

        return jax.tree.map(one, prompts, prompt_cache)

    return lax.fori_loop(0, fill_B.sum(), copy, prompts)


class _Fed(NamedTuple):
    """What is fed at a step: each slot's token, its age, whether it is in use, its prompt and
    its place in the prompt's group.
    """

    token_B: jax.Array
    age_B: jax.Array
    active_B: jax.Array
    prompt_B: jax.Array
    member_B: jax.Array


def _forward_one(
    spec: ModelSpec,
    weights: Any,
    prompt_cache: Caches,
    rows: SlotState,
    fed: _Fed,
    length_M: jax.Array,
    group: int,
    kept: decoding.Kind,
) -> tuple[jax.Array, tuple[Spans, ...]]:
    """Logits of each slot's next token, and the slots' caches with the fed token's k and v at
    its age.
    """
    in_prompt_cache_M = length_M - 1
    row_B = jnp.arange(fed.token_B.size)
    in_bank_B, in_slot_B = (
        jnp.where(fed.active_B, in_prompt_cache_M[fed.prompt_B], 0),
        jnp.where(fed.active_B, fed.age_B + 1, 1),
    )
    cell_B = fed.prompt_B * group + fed.member_B
    num_cells = length_M.size * group
    slot_of_cell = (
        jnp.zeros(num_cells, jnp.int32)
        .at[jnp.where(fed.active_B, cell_B, num_cells)]
        .set(row_B, mode="drop")
    )

    def over_prompts(q_BHC: jax.Array, prompts: Cache) -> Partial:
        if group > 1:
            return _over_cells(q_BHC, prompts, in_prompt_cache_M, slot_of_cell, cell_B, kept)
        return kept.attend(q_BHC, prompts, in_bank_B, None if rows.prompts else fed.prompt_B)

    def attend_both(
        q: jax.Array, k: jax.Array, v: jax.Array, caches: tuple[Cache, Spans]
    ) -> tuple[jax.Array, Spans]:
        prompts, slot = caches
        new = reference.stored(k.swapaxes(1, 2), v.swapaxes(1, 2), prompts)
        slot = decoding.append(kept, slot, new, fed.age_B)
        both = reference.merge(
            over_prompts(q[:, 0], prompts), decoding.over_spans(kept, q[:, 0], slot, in_slot_B)
        )
        return both.o_BHC[:, None], slot

    position_B1 = (in_prompt_cache_M[fed.prompt_B] + fed.age_B)[:, None]
    dtype = weights["final_norm"].dtype
    caches = tuple(zip(rows.prompts or prompt_cache, rows.slots, strict=True))
    x_B1D, slots = transformer.hidden(
        spec, weights, fed.token_B[:, None], position_B1, attend_both, caches=caches, dtype=dtype
    )
    return transformer.logits(spec, weights, x_B1D[:, 0]), slots


def _over_cells(
    q_BHC: jax.Array,
    prompt_cache: Cache,
    in_prompt_cache_M: jax.Array,
    slot_of_cell: jax.Array,
    cell_B: jax.Array,
    kept: decoding.Kind,
) -> Partial:
    """Attention of each slot to its prompt, each row of the prompt cache read once: the group's
    queries stand side by side as heads.
    """
    _, H, C = q_BHC.shape
    M, K = prompt_cache.v_RKSC.shape[:2]

    def to_cells(x: jax.Array) -> jax.Array:  # [B, H, C] -> [M, K * group * H/K, C]
        return x[slot_of_cell].reshape(M, -1, K, H // K, C).swapaxes(1, 2).reshape(M, -1, C)

    def to_slots(x: jax.Array) -> jax.Array:  # [M, K * group * H/K, ...] -> [B, H, ...]
        rest = x.shape[2:]
        cells = x.reshape(M, K, -1, H // K, *rest).swapaxes(1, 2).reshape(-1, H, *rest)
        return cells[cell_B]

    return Partial(
        *(to_slots(x) for x in kept.attend(to_cells(q_BHC), prompt_cache, in_prompt_cache_M, None))
    )
