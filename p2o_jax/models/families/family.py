"""Description of a model family: how its config.json is read and written, and the names of its
tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2o_jax.models.spec import ModelSpec

# for each axis of the file's tensor, the axes of our array (without layer) that it fuses
Axes = tuple[tuple[int, ...], ...]

# our name -> (name in the file, axes). torch stores a linear layer as [out, in]; our arrays are
# [in, out] with a separate axis for heads.
TOP_TENSORS: Mapping[str, tuple[str, Axes]] = {
    "embed": ("model.embed_tokens.weight", ((0,), (1,))),
    "final_norm": ("model.norm.weight", ((0,),)),
    "lm_head": ("lm_head.weight", ((0,), (1,))),
}
BLOCK_TENSORS: Mapping[str, tuple[str, Axes]] = {
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


@dataclass(frozen=True)
class ModelFamily:
    """What distinguishes a family from the others.

    A new family is a module with a `FAMILY` beside this one, an entry in `FAMILIES`, and a test.
    Only mechanisms that no family has yet need changes in `spec.block_weights` and `transformer`.

    Args:
        name: `model_type` in config.json.
        architecture: the class in transformers.
        max_positions: transformers' default of max_position_embeddings.
        extra_config: returns the keys of config.json that not all families have.
        head_dim: transformers' default of head_dim; None: hidden_size / num_attention_heads.
        kv_heads_default: whether a missing num_key_value_heads means num_attention_heads.
        qk_norm: whether queries and keys are normalized per head.
        qkv_bias: whether q, k and v have biases.
        has_window: whether sliding_window restricts attention without use_sliding_window.
        window: transformers' default of sliding_window.
        top_tensors: names and axes of tensors outside the layers.
        block_tensors: names and axes of tensors of a layer.
    """

    name: str
    architecture: str
    max_positions: int
    extra_config: Callable[[ModelSpec], dict[str, Any]]
    head_dim: int | None = None
    kv_heads_default: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    has_window: bool = False
    window: int | None = None
    top_tensors: Mapping[str, tuple[str, Axes]] = field(default_factory=lambda: TOP_TENSORS)
    block_tensors: Mapping[str, tuple[str, Axes]] = field(default_factory=lambda: BLOCK_TENSORS)
