"""Qwen3: normalized queries and keys, and a head size of its own."""

from typing import Any

from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.families.parts import ATTENTION_BIAS, attention_bias
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import read_rope
from p2o_jax.models.spec import ModelSpec


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    return {"rope": read_rope(fields, max_positions), "qk_norm": True, **attention_bias(fields)}


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    return {
        "head_dim": spec.head_dim,
        "attention_bias": spec.qkv_bias,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": spec.layers,
    }


FAMILY = ModelFamily(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    defaults={"max_position_embeddings": 32768, "head_dim": 128},
    read=read,
    write=write,
    keys=ATTENTION_BIAS,
)
