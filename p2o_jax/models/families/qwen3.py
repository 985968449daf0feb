"""Qwen3: normalized queries and keys, no biases, and a head size of its own."""

from typing import Any

from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.spec import ModelSpec


def extra_config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    return {
        "head_dim": spec.head_dim,
        "attention_bias": False,
        "sliding_window": spec.window or None,
        "use_sliding_window": False,
        "max_window_layers": spec.layers,
    }


FAMILY = ModelFamily(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    max_positions=32768,
    head_dim=128,
    qk_norm=True,
    extra_config=extra_config,
)
