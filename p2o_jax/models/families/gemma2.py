"""Gemma 2: alternating sliding and full layers, soft caps, and norms by 1 + weight before and after
each part of a layer.
"""

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
from p2o_jax.models.hf_rope import SLIDING, read_rope
from p2o_jax.models.spec import LayerType, ModelSpec

TENSORS = {
    **BLOCK_TENSORS,
    "attn_post_norm": ("post_attention_layernorm.weight", ((0,),)),
    "mlp_norm": ("pre_feedforward_layernorm.weight", ((0,),)),
    "mlp_post_norm": ("post_feedforward_layernorm.weight", ((0,),)),
}
KEYS = ATTENTION_BIAS | {
    "hidden_activation",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "attn_logit_softcapping",
}


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    layers = fields.integer("num_hidden_layers")
    cap = fields.off_or(fields.number, "attn_logit_softcapping")
    kinds = layer_kinds(fields, [i % 2 == 0 for i in range(layers)])
    size = window(fields)
    types = [LayerType(window=size if kind == SLIDING else 0, soft_cap=cap) for kind in kinds]
    rope = read_rope(fields, max_positions)
    return {"rope": rope, "pattern": repeating(types), **shared_fields(fields)}


def shared_fields(fields: Fields) -> dict[str, Any]:
    """Reads the fields of the spec that Gemma 2 and 3 have in common."""
    return {
        "norm_offset": True,
        "post_norms": True,
        "query_scale": fields.number("query_pre_attn_scalar") ** -0.5,
        "embed_scale": fields.integer("hidden_size") ** 0.5,
        "logit_cap": fields.off_or(fields.number, "final_logit_softcapping"),
        **attention_bias(fields),
    }


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    return {**shared_keys(spec), "attn_logit_softcapping": spec.pattern[0].soft_cap or None}


def shared_keys(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that Gemma 2 and 3 have in common."""
    scalar = round(spec.query_scale**-2, 6) if spec.query_scale else spec.head_dim
    return {
        "head_dim": spec.head_dim,
        "attention_bias": spec.qkv_bias,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "final_logit_softcapping": spec.logit_cap or None,
        **kinds_of(spec),
    }


FAMILY = ModelFamily(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    defaults={
        "max_position_embeddings": 8192,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "tie_word_embeddings": True,
    },
    read=read,
    write=write,
    keys=KEYS,
    activation="hidden_activation",
    block_tensors=TENSORS,
)
