"""Filling of free slots with the next rollouts of the queue, and with what they hold of their
prompts.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from p2o_jax.rollout import layer_caches
from p2o_jax.rollout.decode_state import DecodeState, Queue, SlotState
from p2o_jax.rollout.layer_caches import Caches


@jax.named_scope("refill")
def refilled(
    state: DecodeState, queue: Queue, prompt_cache: Caches, in_slot: tuple[bool, ...]
) -> DecodeState:
    """Returns the state with the next rollouts of the queue in its free slots, in order.

    Args:
        state: the state, with free slots or not.
        queue: the rollouts to sample.
        prompt_cache: cache of the prompts, of each layer.
        in_slot: which layers keep their prompts in the slots (`layer_caches.in_slot`).
    """
    slots = state.slots
    free_B = ~slots.active_B
    candidate_B = state.head + jnp.cumsum(free_B) - 1
    fill_B = free_B & (candidate_B < queue.size)
    rollout_B = jnp.where(fill_B, candidate_B, slots.rollout_B)
    prompt_B = queue.prompt_N[jnp.minimum(rollout_B, queue.prompt_N.size - 1)]
    filled = slots._replace(
        token_B=jnp.where(fill_B, queue.last_token_M[prompt_B], slots.token_B),
        age_B=jnp.where(fill_B, 0, slots.age_B),
        rollout_B=rollout_B,
        active_B=slots.active_B | fill_B,
    )
    filled = _with_prompts(filled, prompt_cache, queue.length_M - 1, in_slot, fill_B, prompt_B)
    return state._replace(slots=filled, head=state.head + fill_B.sum())


def _with_prompts(
    slots: SlotState,
    prompt_cache: Caches,
    in_prompt_cache_M: jax.Array,
    in_slot: tuple[bool, ...],
    fill_B: jax.Array,
    prompt_B: jax.Array,
) -> SlotState:
    """Copies the prompts of the slots to fill from the prompt cache, one at a time: mostly there
    are few.

    Args:
        slots: the slots, with copies of prompts, or layers that keep them, or neither.
        prompt_cache: cache of the prompts, of each layer.
        in_prompt_cache_M: cached tokens of each prompt.
        in_slot: which layers keep their prompts in the slots.
        fill_B: which slots to fill.
        prompt_B: prompt of each slot.
    """
    if not slots.prompts and not any(in_slot):
        return slots
    to_fill_B = jnp.argsort(~fill_B, stable=True)
    read = zip(prompt_cache, in_slot, strict=True) if slots.prompts else ()
    copied = tuple(None if held else cache for cache, held in read)
    kept = {i: slots.spans[i] for i, held in enumerate(in_slot) if held}

    def copy(i: jax.Array, held: Any) -> Any:
        prompts, kept = held
        slot = to_fill_B[i]
        row = prompt_B[slot]
        num_cached = in_prompt_cache_M[row]
        kept = {
            layer: layer_caches.with_prompt(spans, slot, prompt_cache[layer], row, num_cached)
            for layer, spans in kept.items()
        }
        one = functools.partial(layer_caches.with_row, at=slot, row=row)
        return jax.tree.map(lambda x, y: one(x, other=y), prompts, copied), kept

    prompts, kept = lax.fori_loop(0, fill_B.sum(), copy, (slots.prompts, kept))
    spans = tuple(kept.get(layer, spans) for layer, spans in enumerate(slots.spans))
    return slots._replace(prompts=prompts, spans=spans)
