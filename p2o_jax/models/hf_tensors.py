"""The table that maps tensors of a Hugging Face checkpoint to slices of our params, for reading and
writing.
"""

import math
from typing import NamedTuple

from p2o_jax.models.spec import ModelSpec, Weight, weights

# for each axis of the file's tensor, the axes of our array (without layer) that it fuses
Axes = tuple[tuple[int, ...], ...]

# our name -> (name in the file, axes). torch stores a linear layer as [out, in]; our arrays are
# [in, out] with a separate axis for heads.
TOP_TENSORS: dict[str, tuple[str, Axes]] = {
    "embed": ("model.embed_tokens.weight", ((0,), (1,))),
    "final_norm": ("model.norm.weight", ((0,),)),
    "lm_head": ("lm_head.weight", ((0,), (1,))),
}
BLOCK_TENSORS: dict[str, tuple[str, Axes]] = {
    "attn_norm": ("input_layernorm.weight", ((0,),)),
    "q": ("self_attn.q_proj.weight", ((1, 2), (0,))),
    "k": ("self_attn.k_proj.weight", ((1, 2), (0,))),
    "v": ("self_attn.v_proj.weight", ((1, 2), (0,))),
    "o": ("self_attn.o_proj.weight", ((2,), (0, 1))),
    "q_bias": ("self_attn.q_proj.bias", ((0, 1),)),
    "k_bias": ("self_attn.k_proj.bias", ((0, 1),)),
    "v_bias": ("self_attn.v_proj.bias", ((0, 1),)),
    "q_norm": ("self_attn.q_norm.weight", ((0,),)),
    "k_norm": ("self_attn.k_norm.weight", ((0,),)),
    "mlp_norm": ("post_attention_layernorm.weight", ((0,),)),
    "gate": ("mlp.gate_proj.weight", ((1,), (0,))),
    "up": ("mlp.up_proj.weight", ((1,), (0,))),
    "down": ("mlp.down_proj.weight", ((1,), (0,))),
}

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class Stored(NamedTuple):
    """A tensor of a checkpoint's files, and the part of our params that it holds."""

    name: str
    path: tuple[str, ...]  # in the params tree
    layer: int | None  # along the leading axis of a stacked leaf
    shape: tuple[int, ...]  # in the file
    axes: Axes


def tensors(spec: ModelSpec) -> list[Stored]:
    """Returns every tensor of the model's checkpoint, in the order in which it is written."""
    table = weights(spec.base)
    blocks = table["blocks"]
    assert isinstance(blocks, dict)

    def stored(
        name: str, path: tuple[str, ...], layer: int | None, shape: tuple[int, ...], axes: Axes
    ) -> Stored:
        return Stored(
            name, path, layer, tuple(math.prod(shape[i] for i in group) for group in axes), axes
        )

    top = {
        name: stored(TOP_TENSORS[name][0], (name,), None, w.shape, TOP_TENSORS[name][1])
        for name, w in table.items()
        if isinstance(w, Weight)
    }
    layers = [
        stored(
            f"model.layers.{i}.{BLOCK_TENSORS[name][0]}",
            ("blocks", name),
            i,
            w.shape[1:],
            BLOCK_TENSORS[name][1],
        )
        for i in range(spec.layers)
        for name, w in blocks.items()
        if isinstance(w, Weight)
    ]
    return [top.pop("embed"), *layers, *top.values()]
