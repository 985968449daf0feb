"""What each layer keeps of a sequence while it is sampled, by the layer's type.

A layer that attends to everything before keeps all keys and values: those of the prompt in the
prompt cache, which rollouts share, those of the response in its slot.

A layer with a sliding window that is shorter than the longest sequence keeps the window only, as a
ring in its slot: position p, of prompt and response alike, is at p mod window. The ring holds
exactly what the newest token attends to, so that it is read without a mask. When a slot is filled,
its ring is copied from the prompt cache, which keeps whole chunks of the prompt, as a ring too.

A Gated DeltaNet keeps its state and the tail of its convolution. The prompt cache has those after
the prompt's chunks so far, from which prompts with the same beginning continue; a slot that is
filled gets a copy.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from p2o_jax.models import delta_net
from p2o_jax.models.attention import decoding, reference
from p2o_jax.models.attention.decoding import Spans
from p2o_jax.models.attention.reference import Cache
from p2o_jax.models.delta_net import DeltaState
from p2o_jax.models.spec import LayerType, ModelSpec

Caches = tuple[Cache | DeltaState, ...]  # one per layer


def ring(layer: LayerType, longest: int) -> int:
    """Returns the positions of a layer's ring for sequences of up to this many tokens; 0 if it
    keeps all positions.
    """
    return layer.window if 0 < layer.window < longest else 0


def in_slot(layer: LayerType, longest: int) -> bool:
    """Whether a slot holds all that the layer keeps of a sequence, its prompt included."""
    return layer.delta is not None or ring(layer, longest) > 0


def chunks_before(window: int, chunk: int) -> int:
    """Returns how many chunks before its own a query may attend to."""
    return -(-(window - 1) // chunk)


def prompt_positions(spec: ModelSpec, whole: int, chunk: int) -> tuple[int, ...]:
    """Returns the positions that the prompt cache of each layer keeps of prompts of `whole`
    positions: all of them, or the last chunks that a window reaches.
    """

    def kept(layer: LayerType) -> int:
        reached = (chunks_before(layer.window, chunk) + 1) * chunk
        return min(whole, reached) if layer.window else whole

    return tuple(map(kept, spec.layer_types))


def empty_caches(
    spec: ModelSpec, rows: int, positions: Sequence[int], dtype: Any, kind: type[Cache] = Cache
) -> Caches:
    """Returns a zeroed cache for each layer.

    Args:
        spec: the model.
        rows: rows of each cache.
        positions: positions of each layer's rows; those of a DeltaNet do not matter.
        dtype: dtype of keys and values; int8 adds scales.
        kind: the layout of the cache.
    """
    return tuple(
        delta_net.empty(layer.delta, rows)
        if layer.delta
        else reference.empty_cache(rows, spec.kv_heads, count, spec.head_dim, dtype, kind)
        for layer, count in zip(spec.layer_types, positions, strict=True)
    )


def with_prompt(
    held: Spans | DeltaState,
    slot: jax.Array,
    prompts: Cache | DeltaState,
    row: jax.Array,
    num_cached: jax.Array,
) -> Spans | DeltaState:
    """Returns the rings or memories of a layer with a prompt in one of the slots.

    Args:
        held: those of all slots.
        slot: the slot to fill.
        prompts: the layer's prompt cache.
        row: the prompt's row there.
        num_cached: cached tokens of the prompt.
    """
    if isinstance(prompts, DeltaState):
        return jax.tree.map(lambda x, y: with_row(x, slot, y, row), held, prompts)
    assert not isinstance(held, DeltaState)
    size, kept = sum(map(reference.num_positions, held)), reference.num_positions(prompts)
    last = num_cached - 1
    # the last position at each place of the ring; places beyond a short prompt are not read
    position = jnp.maximum(last - (last - jnp.arange(size)) % size, 0)

    def read(axis: int, x: jax.Array) -> jax.Array:
        one = lax.dynamic_slice_in_dim(x, row, 1)
        return jnp.take(one, position % kept, axis=axis)

    taken = reference.by_position(read, prompts)
    return tuple(
        reference.by_position(
            lambda axis, x, y, at=slice(start, end): lax.dynamic_update_slice_in_dim(
                x, y[(slice(None),) * axis + (at,)], slot, 0
            ),
            span,
            taken,
        )
        for start, end, span in decoding.bounds(held)
    )


def with_row(x: jax.Array, at: jax.Array, other: jax.Array, row: jax.Array) -> jax.Array:
    """Returns x with a row of another array in place of its row `at`."""
    return lax.dynamic_update_slice_in_dim(x, lax.dynamic_slice_in_dim(other, row, 1), at, 0)
