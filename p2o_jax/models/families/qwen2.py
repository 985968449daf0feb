"""Qwen2 and Qwen2.5: biases on q, k and v. Seed-OSS: the same with a head size of its own."""

from typing import Any

from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import read_rope
from p2o_jax.models.spec import ModelSpec


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    return {"rope": read_rope(fields, max_positions), "qkv_bias": True}


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    window = {
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": spec.layers,
    }
    return (
        window
        if spec.head_dim * spec.heads == spec.width
        else {"head_dim": spec.head_dim, **window}
    )


def read_seed_oss(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    return {
        "rope": read_rope(fields, max_positions),
        "qkv_bias": fields.flag("attention_bias"),
        "o_bias": fields.flag("attention_out_bias"),
        "mlp_bias": fields.flag("mlp_bias"),
    }


def write_seed_oss(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    return {
        "head_dim": spec.head_dim,
        "attention_bias": spec.qkv_bias,
        "attention_out_bias": spec.o_bias,
        "mlp_bias": spec.mlp_bias,
        "residual_dropout": 0.0,
    }


FAMILY = ModelFamily(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    defaults={"max_position_embeddings": 32768},
    read=read,
    write=write,
    keys=frozenset({"attention_bias", "qkv_bias"}),
)
SEED_OSS = ModelFamily(
    name="seed_oss",
    architecture="SeedOssForCausalLM",
    defaults={"max_position_embeddings": 524288, "head_dim": 128, "attention_bias": True},
    read=read_seed_oss,
    write=write_seed_oss,
    keys=frozenset({"attention_bias", "attention_out_bias", "mlp_bias"}),
)
