"""Mistral, whose sliding window must not be smaller than max_position_embeddings."""

from typing import Any

from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.spec import ModelSpec


def extra_config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    return {"head_dim": spec.head_dim, "sliding_window": spec.window or None}


FAMILY = ModelFamily(
    name="mistral",
    architecture="MistralForCausalLM",
    max_positions=131072,
    has_window=True,
    window=4096,
    extra_config=extra_config,
)
