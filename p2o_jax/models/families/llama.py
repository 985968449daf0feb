"""Llama 2 and 3, and other models that use the class."""

from typing import Any

from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.spec import ModelSpec


def extra_config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    config = {"head_dim": spec.head_dim, "attention_bias": False, "mlp_bias": False}
    return {**config, "sliding_window": spec.window} if spec.window else config


FAMILY = ModelFamily(
    name="llama",
    architecture="LlamaForCausalLM",
    max_positions=2048,
    kv_heads_default=True,
    has_window=True,
    extra_config=extra_config,
)
