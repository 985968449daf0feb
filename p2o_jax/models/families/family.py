"""Description of a model family: how its config.json is read and written, and the names of its
tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import read_rope
from p2o_jax.models.spec import ModelSpec

# for each axis of the file's tensor, the axes of our array (without layer) that it fuses
Axes = tuple[tuple[int, ...], ...]
EXPERT = "{expert}"  # in a tensor's name: every expert has such a tensor

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
    "o_bias": ("self_attn.o_proj.bias", ((0,),)),
    "q_norm": ("self_attn.q_norm.weight", ((0,),)),
    "k_norm": ("self_attn.k_norm.weight", ((0,),)),
    "mlp_norm": ("post_attention_layernorm.weight", ((0,),)),
    "gate": ("mlp.gate_proj.weight", ((1,), (0,))),
    "up": ("mlp.up_proj.weight", ((1,), (0,))),
    "down": ("mlp.down_proj.weight", ((1,), (0,))),
    "gate_bias": ("mlp.gate_proj.bias", ((0,),)),
    "up_bias": ("mlp.up_proj.bias", ((0,),)),
    "down_bias": ("mlp.down_proj.bias", ((0,),)),
    "router": ("mlp.gate.weight", ((1,), (0,))),
    "expert_gate": (f"mlp.experts.{EXPERT}.gate_proj.weight", ((1,), (0,))),
    "expert_up": (f"mlp.experts.{EXPERT}.up_proj.weight", ((1,), (0,))),
    "expert_down": (f"mlp.experts.{EXPERT}.down_proj.weight", ((1,), (0,))),
}


Read = Callable[[Fields, int], dict[str, Any]]


def usual_rope(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the rope that all layers have."""
    return {"rope": read_rope(fields, max_positions)}


@dataclass(frozen=True)
class ModelFamily:
    """What distinguishes a family from the others.

    A new family is a module with a `FAMILY` beside this one, an entry in `FAMILIES`, and a test.
    Only mechanisms that no family has yet need changes in `spec.block_weights`, `layer` and
    `transformer`.

    Args:
        name: `model_type` in config.json.
        architecture: the class in transformers.
        defaults: transformers' defaults of keys of config.json.
        read: returns fields of the spec that not all families have, from config.json and
            max_position_embeddings.
        write: returns the keys of config.json that not all families have.
        keys: the keys of config.json that `read` reads, apart from positions.
        activation: the key of config.json that names the MLP's activation.
        kv_heads_default: whether a missing num_key_value_heads means num_attention_heads.
        top_tensors: names and axes of tensors outside the layers.
        block_tensors: names and axes of tensors of a layer.
        turns: arrays that a tensor holds in turns along its last axis, as gate and up of each
            channel: which of them this is, of how many.
        ignored: beginnings of the names of tensors that a model of text does without.
    """

    name: str
    architecture: str
    defaults: Mapping[str, Any]
    read: Read = usual_rope
    write: Callable[[ModelSpec], dict[str, Any]] = lambda spec: {}
    keys: frozenset[str] = frozenset()
    activation: str = "hidden_act"
    kv_heads_default: bool = False
    top_tensors: Mapping[str, tuple[str, Axes]] = field(default_factory=lambda: TOP_TENSORS)
    block_tensors: Mapping[str, tuple[str, Axes]] = field(default_factory=lambda: BLOCK_TENSORS)
    turns: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
