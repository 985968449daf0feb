"""Granite: Llama with multipliers of embeddings, attention scores, layers and logits."""

from typing import Any

from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.families.parts import BIASES, biases
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import read_rope
from p2o_jax.models.spec import ModelSpec


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    return {
        "rope": read_rope(fields, max_positions),
        "embed_scale": fields.number("embedding_multiplier", 1.0),
        "query_scale": fields.number("attention_multiplier", 1.0),
        "residual_scale": fields.number("residual_multiplier", 1.0),
        "logit_divisor": fields.number("logits_scaling", 1.0),
        **biases(fields),
    }


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    return {
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
        "embedding_multiplier": spec.embed_scale,
        "attention_multiplier": spec.query_scale or spec.head_dim**-0.5,
        "residual_multiplier": spec.residual_scale,
        "logits_scaling": spec.logit_divisor,
    }


FAMILY = ModelFamily(
    name="granite",
    architecture="GraniteForCausalLM",
    defaults={"max_position_embeddings": 2048},
    kv_heads_default=True,
    read=read,
    write=write,
    keys=BIASES
    | {"embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"},
)
