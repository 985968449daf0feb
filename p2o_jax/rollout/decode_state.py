"""The arrays of decoding on the devices: queue, slots, state between chunks, and finished
rollouts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from p2o_jax.models import delta_net, experts
from p2o_jax.models.attention import decoding, reference
from p2o_jax.models.attention.decoding import Spans
from p2o_jax.models.attention.reference import Cache
from p2o_jax.models.delta_net import DeltaState
from p2o_jax.models.spec import LayerType, ModelSpec
from p2o_jax.rollout import layer_caches


class Queue(NamedTuple):
    """The work of a shard: N rollouts of M prompts, of which the first `size` are real."""

    last_token_M: jax.Array
    length_M: jax.Array  # prompt tokens, including the last
    prompt_N: jax.Array  # row of the prompt cache
    member_N: jax.Array  # index among the rollouts of the same prompt
    limit_N: jax.Array  # response tokens at most, besides the limit of the call
    name_N2: jax.Array  # uint32 hash of the rollout's name
    size: jax.Array  # [1]


class SlotState(NamedTuple):
    """State of each slot: next token to feed, response length so far, its rollout, its KV cache."""

    token_B: jax.Array
    age_B: jax.Array
    rollout_B: jax.Array
    active_B: jax.Array
    # of each layer: the cache of generated tokens, or all it keeps of a sequence (`layer_caches`)
    spans: tuple[Spans | DeltaState, ...]
    # copies of rows of the prompt cache, None for layers whose prompts are in the spans; empty
    # where the prompt cache itself is read
    prompts: tuple[Cache | None, ...]


class DecodeState(NamedTuple):
    """State of a shard between chunks: its slots, its position in the queue, and what it has
    sampled.
    """

    slots: SlotState
    head: jax.Array  # [1]: rollouts started
    finished: jax.Array  # [1]
    order_N: jax.Array  # rollouts in the order they finished
    token_NR: jax.Array
    logp_NR: jax.Array
    choice_NRX: jax.Array  # experts that computed each token's predecessor, if they are recorded
    length_N: jax.Array


class DecodeChunk(NamedTuple):
    """Rollouts that a shard finished in a chunk; the first `number` entries are real. All other
    fields are [1].
    """

    rollout_n: jax.Array
    token_nR: jax.Array
    logp_nR: jax.Array
    choice_nRX: jax.Array
    length_n: jax.Array
    number: jax.Array
    left: jax.Array  # unfinished rollouts of the shard that has most
    waiting: jax.Array  # those still in a queue
    busy: jax.Array  # active slots and computed slots, each summed over steps; and steps
    computed: jax.Array
    steps: jax.Array


def begin(
    spec: ModelSpec,
    num_slots: int,
    num_rollouts: int,
    max_positions: int,
    dtype: Any,
    cache_ops: decoding.CacheOps,
    longest: int,
    prompt_positions: int = 0,
    record_experts: bool = False,
) -> DecodeState:
    """Returns the state before the first chunk: idle slots, nothing sampled.

    Args:
        spec: the model.
        num_slots: slots B of a shard.
        num_rollouts: rollouts N that the queue can hold.
        max_positions: response tokens to allocate.
        dtype: dtype of the caches.
        cache_ops: how this kind of device holds its caches.
        longest: tokens of the longest sequence, which decides which layers have a ring.
        prompt_positions: positions of a slot's copy of its prompt's cache; 0: no copies.
        record_experts: whether to record the experts that compute each token.
    """
    zeros_B, zero = jnp.zeros(num_slots, jnp.int32), jnp.zeros(1, jnp.int32)
    positions = -(-max_positions // 8) * 8  # kernels need a multiple of 8

    def empty(size: int) -> Cache:
        heads, kind = spec.kv_heads, cache_ops.cache
        return reference.empty_cache(num_slots, heads, size, spec.head_dim, dtype, kind)

    def kept(layer: LayerType) -> Spans | DeltaState:
        if layer.delta:
            return delta_net.empty(layer.delta, num_slots)
        size = layer_caches.ring(layer, longest) or positions
        return tuple(map(empty, decoding.spans_of(cache_ops, size)))

    prompts = tuple(
        None if layer_caches.in_slot(layer, longest) else empty(prompt_positions)
        for layer in spec.layer_types
    )
    spans = tuple(map(kept, spec.layer_types))
    slots = SlotState(
        zeros_B, zeros_B, zeros_B, zeros_B > 0, spans, prompts if prompt_positions else ()
    )
    zeros_N = jnp.zeros(num_rollouts, jnp.int32)
    tokens, logps = (
        jnp.zeros((num_rollouts, max_positions), jnp.int32),
        jnp.zeros((num_rollouts, max_positions)),
    )
    choice = experts.choices_of_token(spec, record_experts)
    choices = jnp.zeros((*tokens.shape, *choice.shape), choice.dtype)
    return DecodeState(slots, zero, zero, zeros_N, tokens, logps, choices, zeros_N)


def pack(slots: SlotState, num_slots: int) -> SlotState:
    """Returns the active slots, at most `num_slots`, as that many slots."""
    slot_b = jnp.argsort(~slots.active_B, stable=True)[:num_slots]
    return jax.tree.map(lambda x: x[slot_b], slots)


def sizes(num_slots: int, min_slots: int) -> tuple[int, ...]:
    """Returns the slot counts that a shard decodes with: `num_slots`, then halves down to
    `min_slots` (0: no halves).
    """
    result = [num_slots]
    while min_slots and result[-1] % 2 == 0 and result[-1] // 2 >= min_slots:
        result.append(result[-1] // 2)
    return tuple(result)
