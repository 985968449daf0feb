"""OLMo 2 and 3: norms after attention and MLP only, and queries and keys normalized over all heads
together. In OLMo 3, three sliding layers with unscaled positions come before each full one.
"""

import dataclasses
from typing import Any

from p2o_jax.models.families.family import BLOCK_TENSORS, ModelFamily
from p2o_jax.models.families.parts import (
    ATTENTION_BIAS,
    attention_bias,
    kinds_of,
    layer_kinds,
    repeating,
    window,
)
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import FULL, SLIDING, nested_rope, read_rope, read_ropes
from p2o_jax.models.spec import LayerType, ModelSpec, Rope

TENSORS = {
    **BLOCK_TENSORS,
    "q_norm": ("self_attn.q_norm.weight", ((0, 1),)),
    "k_norm": ("self_attn.k_norm.weight", ((0, 1),)),
    "attn_post_norm": ("post_attention_layernorm.weight", ((0,),)),
    "mlp_post_norm": ("post_feedforward_layernorm.weight", ((0,),)),
}
THETA = 500000.0  # of OLMo 3, where config.json states none


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    return {"rope": read_rope(fields, max_positions), **_shared_fields(fields)}


def _shared_fields(fields: Fields) -> dict[str, Any]:
    """Reads the fields of the spec that OLMo 2 and 3 have in common."""
    return {
        "pre_norms": False,
        "post_norms": True,
        "qk_norm": True,
        "qk_norm_whole": True,
        **attention_bias(fields),
    }


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    return {"attention_bias": spec.qkv_bias}


def read_olmo3(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have. rope_theta of the older layout
    applies to full layers only, as in transformers.
    """
    layers = fields.integer("num_hidden_layers")
    kinds = layer_kinds(fields, [(i + 1) % 4 > 0 for i in range(layers)])
    thetas = {FULL: fields.number("rope_theta", THETA), SLIDING: THETA}
    ropes = read_ropes(fields, max_positions, thetas)
    sliding = LayerType(window=window(fields), rope=ropes[SLIDING])
    types = [sliding if kind == SLIDING else LayerType() for kind in kinds]
    return {"rope": ropes[FULL], "pattern": repeating(types), **_shared_fields(fields)}


def write_olmo3(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have. The older layout cannot state the
    base of sliding layers, which versions of transformers read differently if it is not the usual.
    """
    keys = {**write(spec), **kinds_of(spec)}
    local = next((layer.rope for layer in spec.pattern if layer.rope), spec.rope)
    if local == Rope(theta=THETA) and spec.rope.theta == THETA:
        return keys
    nested = {FULL: nested_rope(spec.rope), SLIDING: nested_rope(local)}
    return {**keys, "rope_parameters": nested, "rope_scaling": None, "rope_theta": None}


OLMO2 = ModelFamily(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    kv_heads_default=True,
    read=read,
    write=write,
    keys=ATTENTION_BIAS,
    block_tensors=TENSORS,
)
OLMO3 = dataclasses.replace(
    OLMO2,
    name="olmo3",
    architecture="Olmo3ForCausalLM",
    defaults={**OLMO2.defaults, "sliding_window": 4096},
    read=read_olmo3,
    write=write_olmo3,
)
