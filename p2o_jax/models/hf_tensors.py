"""The table that maps tensors of a Hugging Face checkpoint to slices of our params, for reading and
writing.
"""

import math
from typing import NamedTuple

from p2o_jax.models.families import FAMILIES
from p2o_jax.models.families.family import Axes
from p2o_jax.models.spec import ModelSpec, Weight, block_weights, weights

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class Stored(NamedTuple):
    """A tensor of a checkpoint's files, and the part of our params that it holds."""

    name: str
    path: tuple[str, ...]  # in the params tree
    layer: int | None  # index along the leading axis of a stacked leaf
    shape: tuple[int, ...]  # in the file
    axes: Axes


def tensors(spec: ModelSpec) -> list[Stored]:
    """Returns every tensor of the model's checkpoint, in the order in which it is written."""
    table, family = weights(spec.base), FAMILIES[spec.family]
    top_tensors, block_tensors = family.top_tensors, family.block_tensors

    def stored(
        name: str, path: tuple[str, ...], layer: int | None, shape: tuple[int, ...], axes: Axes
    ) -> Stored:
        return Stored(
            name, path, layer, tuple(math.prod(shape[i] for i in group) for group in axes), axes
        )

    top = {
        name: stored(top_tensors[name][0], (name,), None, w.shape, top_tensors[name][1])
        for name, w in table.items()
        if isinstance(w, Weight)
    }
    places = {
        layer: (stack.key, i) for stack in spec.stacks for i, layer in enumerate(stack.layers)
    }
    layers = [
        stored(
            f"model.layers.{layer}.{block_tensors[name][0]}",
            (places[layer][0], name),
            places[layer][1],
            w.shape,
            block_tensors[name][1],
        )
        for layer, type in enumerate(spec.layer_types)
        for name, w in block_weights(spec.base, type).items()
    ]
    return [top.pop("embed"), *layers, *top.values()]
