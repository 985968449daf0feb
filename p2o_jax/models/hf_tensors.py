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
    """A tensor of a checkpoint's files, or some of its rows, and the part of our params that it
    holds.
    """

    name: str
    path: tuple[str, ...]  # in the params tree
    layer: int | None  # index along the leading axis of a stacked leaf
    shape: tuple[int, ...]  # in the file
    axes: Axes
    first_row: int = 0  # in the tensor, where it holds several of our arrays


def tensors(spec: ModelSpec) -> list[Stored]:
    """Returns every tensor of the model's checkpoint, in the order in which it is written. Parts of
    one tensor follow each other.
    """
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
    return [top.pop("embed"), *_in_parts(layers), *top.values()]


def whole_shapes(table: list[Stored]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor."""
    shapes = {}
    for t in table:
        shapes[t.name] = (t.first_row + t.shape[0], *t.shape[1:])
    return shapes


def _in_parts(table: list[Stored]) -> list[Stored]:
    """Returns the table with parts of the same tensor one after the other, at their rows."""
    parts: dict[str, list[Stored]] = {}
    for t in table:
        before = parts.setdefault(t.name, [])
        before.append(t._replace(first_row=sum(other.shape[0] for other in before)))
    return [t for same in parts.values() for t in same]
