"""Qwen2 and Qwen2.5: biases on q, k and v."""

from typing import Any

from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.spec import ModelSpec


def extra_config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    window = {
        "sliding_window": spec.window or None,
        "use_sliding_window": False,
        "max_window_layers": spec.layers,
    }
    return (
        window
        if spec.head_dim * spec.heads == spec.width
        else {"head_dim": spec.head_dim, **window}
    )


FAMILY = ModelFamily(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    max_positions=32768,
    qkv_bias=True,
    extra_config=extra_config,
)
