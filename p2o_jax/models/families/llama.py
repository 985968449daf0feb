"""Llama 2 and 3, other models that use the class, and models that are Llama under another name."""

import dataclasses
from typing import Any

from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.families.parts import BIASES, biases
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import USUAL_KINDS, read_rope
from p2o_jax.models.spec import ModelSpec


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    window, limit = fields.values.get("sliding_window"), max_positions
    if window is not None and not (type(window) is int and window >= limit):
        fields.problems.append(
            f"sliding_window={window}, smaller than max_position_embeddings, is not supported;"
            " supported: full attention in every layer"
        )
    return {"rope": read_rope(fields, max_positions), **biases(fields)}


def read_internlm3(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have. Its checkpoints have dynamic rope,
    which is unscaled up to max_position_embeddings.
    """
    rope = read_rope(fields, max_positions, (*USUAL_KINDS, "dynamic"))
    return {"rope": rope, **biases(fields)}


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    return {
        "head_dim": spec.head_dim,
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
    }


FAMILY = ModelFamily(
    name="llama",
    architecture="LlamaForCausalLM",
    defaults={"max_position_embeddings": 2048},
    kv_heads_default=True,
    read=read,
    write=write,
    keys=BIASES,
)
IQUESTCODER = dataclasses.replace(
    FAMILY,
    name="iquestcoder",
    architecture="IQuestCoderForCausalLM",
    defaults={"max_position_embeddings": 131072, "head_dim": 128, "rms_norm_eps": 1e-5},
)
INTERNLM3 = dataclasses.replace(
    FAMILY,
    name="internlm3",
    architecture="InternLM3ForCausalLM",
    defaults={"max_position_embeddings": 32768, "head_dim": 128, "rms_norm_eps": 1e-5},
    read=read_internlm3,
)
