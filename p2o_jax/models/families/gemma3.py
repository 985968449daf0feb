"""Gemma 3: five sliding layers before each full one, each kind with a rope of its own, and
normalized queries and keys.
"""

from typing import Any

from p2o_jax.models.families import gemma2
from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.families.parts import layer_kinds, repeating, window
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import FULL, SLIDING, read_ropes, write_rope
from p2o_jax.models.spec import LayerType, ModelSpec


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    layers = fields.integer("num_hidden_layers")
    period = fields.integer("sliding_window_pattern", 6)  # older files; newer have layer_types
    kinds = layer_kinds(fields, [(i + 1) % period > 0 for i in range(layers)])
    thetas = {
        FULL: fields.number("rope_theta", 1e6),
        SLIDING: fields.number("rope_local_base_freq", 1e4),
    }
    ropes = read_ropes(fields, max_positions, thetas)
    sliding = LayerType(window=window(fields), rope=ropes[SLIDING])
    types = [sliding if kind == SLIDING else LayerType() for kind in kinds]
    return {
        "rope": ropes[FULL],
        "pattern": repeating(types),
        "qk_norm": True,
        **gemma2.shared_fields(fields),
    }


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    local = next((layer.rope for layer in spec.pattern if layer.rope), spec.rope)
    return {
        **gemma2.shared_keys(spec),
        "attn_logit_softcapping": None,
        "rope_theta": spec.rope.theta,
        "rope_scaling": write_rope(spec.rope),
        "rope_local_base_freq": local.theta,
    }


FAMILY = ModelFamily(
    name="gemma3_text",
    architecture="Gemma3ForCausalLM",
    # composite checkpoints leave out most keys
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    read=read,
    write=write,
    # the field attn_logit_softcapping exists, but nothing uses it
    keys=gemma2.KEYS
    | {"sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq"},
    activation="hidden_activation",
    block_tensors=gemma2.TENSORS,
)
