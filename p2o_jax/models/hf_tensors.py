"""The table that maps tensors of a Hugging Face checkpoint to slices of our params, for reading and
writing.
"""

import math
from typing import NamedTuple

from p2o_jax.models.families import FAMILIES
from p2o_jax.models.families.family import EXPERT, Axes
from p2o_jax.models.spec import ModelSpec, Weight, block_weights, weights

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class Stored(NamedTuple):
    """A tensor of a checkpoint's files, or a part of it, and the part of our params that it
    holds.
    """

    name: str
    path: tuple[str, ...]  # in the params tree
    # along the leading axes of a leaf: layer and expert, as far as they have tensors of their own
    place: tuple[int, ...]
    shape: tuple[int, ...]  # of the part, in the file
    axes: Axes
    first_row: int = 0  # in the tensor, where it holds several of our arrays one after the other
    # where it holds several in turns along its last axis: which of them this is, of how many
    turn: tuple[int, int] = (0, 1)


def tensors(spec: ModelSpec) -> list[Stored]:
    """Returns every tensor of the model's checkpoint, in the order in which it is written. Parts of
    one tensor follow each other.
    """
    table, family = weights(spec.base), FAMILIES[spec.family]
    top_tensors, block_tensors = family.top_tensors, family.block_tensors

    def stored(
        name: str, path: tuple[str, ...], place: tuple[int, ...], shape: tuple[int, ...], axes: Axes
    ) -> Stored:
        shape = tuple(math.prod(shape[i] for i in group) for group in axes)
        return Stored(name, path, place, shape, axes, turn=family.turns.get(path[-1], (0, 1)))

    top = {
        name: stored(top_tensors[name][0], (name,), (), w.shape, top_tensors[name][1])
        for name, w in table.items()
        if isinstance(w, Weight)
    }
    places = {
        layer: (stack.key, i) for stack in spec.stacks for i, layer in enumerate(stack.layers)
    }
    layers = []
    for layer, type in enumerate(spec.layer_types):
        stack, i = places[layer]
        for name, w in block_weights(spec.base, type).items():
            theirs, axes = block_tensors[name]
            theirs, path = f"model.layers.{layer}.{theirs}", (stack, name)
            if EXPERT in theirs:
                layers += [
                    stored(theirs.replace(EXPERT, str(e)), path, (i, e), w.shape[1:], axes)
                    for e in range(w.shape[0])
                ]
            else:
                layers.append(stored(theirs, path, (i,), w.shape, axes))
    return [top.pop("embed"), *_in_parts(layers), *top.values()]


def whole_shapes(table: list[Stored]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor."""
    shapes = {}
    for t in table:
        rows, *others = t.shape
        shapes[t.name] = (t.first_row + rows, *others[:-1], *(n * t.turn[1] for n in others[-1:]))
    return shapes


def _in_parts(table: list[Stored]) -> list[Stored]:
    """Returns the table with parts of the same tensor next to each other, at their rows."""
    parts: dict[str, list[Stored]] = {}
    for t in table:
        before = parts.setdefault(t.name, [])
        in_turns = t.turn[1] > 1
        before.append(t._replace(first_row=0 if in_turns else sum(o.shape[0] for o in before)))
    return [t for same in parts.values() for t in same]
