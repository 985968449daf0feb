"""What each layer keeps of a sequence while it is sampled, by the layer's type.

A layer that attends to everything before keeps all keys and values: those of the prompt in the
prompt cache, which rollouts share, those of the response in its slot.

A layer with a sliding window that is shorter than the longest sequence keeps the window only, as a
ring in its slot: position p, of prompt and response alike, is at p mod window. The ring holds
exactly what the newest token attends to, so that it is read without a mask. When a slot is filled,
its ring is copied from the prompt cache, which keeps whole chunks of the prompt, as a ring too.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from p2o_jax.models.attention import decoding, reference
from p2o_jax.models.attention.decoding import Spans
from p2o_jax.models.attention.reference import Cache
from p2o_jax.models.spec import LayerType, ModelSpec

Caches = tuple[Cache, ...]  # one per layer


def ring(layer: LayerType, longest: int) -> int:
    """Returns the positions of a layer's ring for sequences of up to this many tokens; 0 if it
    keeps all positions.
    """
    return layer.window if 0 < layer.window < longest else 0


def rings(spec: ModelSpec, longest: int) -> tuple[int, ...]:
    """Returns `ring` of each layer."""
    return tuple(ring(layer, longest) for layer in spec.layer_types)


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
        positions: positions of each layer's rows.
        dtype: dtype of keys and values; int8 adds scales.
        kind: the layout of the cache.
    """
    return tuple(
        reference.empty_cache(rows, spec.kv_heads, count, spec.head_dim, dtype, kind)
        for count in positions
    )


def with_prompt(
    spans: Spans, slot: jax.Array, prompts: Cache, row: jax.Array, num_cached: jax.Array
) -> Spans:
    """Returns the rings of a layer with a prompt in one of the slots.

    Args:
        spans: the rings of all slots.
        slot: the slot to fill.
        prompts: the layer's prompt cache.
        row: the prompt's row there.
        num_cached: cached tokens of the prompt.
    """
    size, kept = sum(map(reference.num_positions, spans)), reference.num_positions(prompts)
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
        for start, end, span in decoding.bounds(spans)
    )
