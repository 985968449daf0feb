"""Mistral: a sliding window in all layers or none."""

from typing import Any

from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.families.parts import all_sliding
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import read_rope
from p2o_jax.models.spec import ModelSpec


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    return {"rope": read_rope(fields, max_positions), **all_sliding(fields)}


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    return {"head_dim": spec.head_dim, "sliding_window": spec.pattern[0].window or None}


FAMILY = ModelFamily(
    name="mistral",
    architecture="MistralForCausalLM",
    defaults={"max_position_embeddings": 131072, "sliding_window": 4096},
    read=read,
    write=write,
)
