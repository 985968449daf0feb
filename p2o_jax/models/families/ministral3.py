"""Ministral 3: Mistral with YaRN, and queries that grow with the position beyond the original
length.
"""

import dataclasses
from typing import Any

from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.families.parts import all_sliding
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import nested_rope, read_rope
from p2o_jax.models.spec import ModelSpec

# `max_position_embeddings` of the rope repeats that of the model
_ROPE_KEYS = frozenset({"llama_4_scaling_beta", "max_position_embeddings"})


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    rope = read_rope(fields, max_positions, more_keys=_ROPE_KEYS)
    given = fields.values.get("rope_scaling") or fields.values.get("rope_parameters")
    if given is None:
        fields.problems.append("rope_parameters is missing")
    elif isinstance(given, dict) and rope.kind == "yarn":
        beta = Fields(given, "rope_parameters.", fields.problems)
        rope = dataclasses.replace(rope, query_beta=beta.number("llama_4_scaling_beta"))
    return {"rope": rope, **all_sliding(fields)}


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have. The family is younger than the
    older layout of positions. Programs that do not know attention_factor know mscale.
    """
    rope = nested_rope(spec.rope)
    if spec.rope.attention_factor == 1:
        rope |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    if spec.rope.query_beta:
        rope["llama_4_scaling_beta"] = spec.rope.query_beta
    return {
        "head_dim": spec.head_dim,
        "sliding_window": spec.pattern[0].window or None,
        "rope_parameters": rope,
        "rope_scaling": None,
        "rope_theta": None,
    }


FAMILY = ModelFamily(
    name="ministral3",
    architecture="Ministral3ForCausalLM",
    defaults={"max_position_embeddings": 262144, "head_dim": 128, "rms_norm_eps": 1e-5},
    read=read,
    write=write,
)
