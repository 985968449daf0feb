"""SmolLM3: Llama in which every fourth layer has no positions."""

from typing import Any

from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.families.parts import BIASES, biases, repeating
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import read_rope
from p2o_jax.models.spec import LayerType, ModelSpec


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have. Despite its name, no_rope_layers is
    1 for layers with positions.
    """
    layers = fields.integer("num_hidden_layers")
    interval = fields.integer("no_rope_layer_interval", 4)
    usual = [int((i + 1) % interval > 0) for i in range(layers)]
    placed = fields.of_layers("no_rope_layers", usual, (0, 1))
    return {
        "rope": read_rope(fields, max_positions),
        "pattern": repeating([LayerType(positions=bool(p)) for p in placed]),
        **biases(fields),
    }


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    return {
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
        "no_rope_layers": [int(layer.positions) for layer in spec.layer_types],
        "layer_types": ["full_attention"] * spec.layers,
        "use_sliding_window": False,
        "sliding_window": None,
    }


FAMILY = ModelFamily(
    name="smollm3",
    architecture="SmolLM3ForCausalLM",
    defaults={
        "max_position_embeddings": 32768,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
    },
    read=read,
    write=write,
    keys=BIASES | {"no_rope_layers", "no_rope_layer_interval"},
)
