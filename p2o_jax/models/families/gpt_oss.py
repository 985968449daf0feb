"""gpt-oss: experts with biases and a clamped activation in all layers, a sink in each attention
head, and sliding windows in every other layer.
"""

from typing import Any

from p2o_jax.models.families.family import BLOCK_TENSORS, ModelFamily
from p2o_jax.models.families.parts import (
    ATTENTION_BIAS,
    attention_bias,
    experts,
    experts_of,
    kinds_of,
    layer_kinds,
    repeating,
    window,
)
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import SLIDING, read_rope
from p2o_jax.models.spec import LayerType, ModelSpec

_GATE_UP, _EACH = "mlp.experts.gate_up_proj", ((0,), (1,), (2,))
TENSORS = {
    **BLOCK_TENSORS,
    "sinks": ("self_attn.sinks", ((0,),)),
    "router": ("mlp.router.weight", ((1,), (0,))),
    "router_bias": ("mlp.router.bias", ((0,),)),
    # of all experts, inputs first
    "expert_gate": (_GATE_UP, _EACH),
    "expert_up": (_GATE_UP, _EACH),
    "expert_down": ("mlp.experts.down_proj", _EACH),
    "expert_gate_bias": (f"{_GATE_UP}_bias", ((0,), (1,))),
    "expert_up_bias": (f"{_GATE_UP}_bias", ((0,), (1,))),
    "expert_down_bias": ("mlp.experts.down_proj_bias", ((0,), (1,))),
}


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    sparse = experts(
        fields,
        "num_local_experts",
        "intermediate_size",
        bias=True,
        swiglu_limit=fields.number("swiglu_limit", 7.0),
        swiglu_alpha=fields.number("swiglu_alpha", 1.702),
    )
    if not (fields.values.get("rope_scaling") or fields.values.get("rope_parameters")):
        fields.problems.append("rope_scaling is missing")
    layers = fields.integer("num_hidden_layers")
    kinds = layer_kinds(fields, [i % 2 == 0 for i in range(layers)])
    types = [LayerType(window(fields) if k == SLIDING else 0, experts=sparse) for k in kinds]
    return {
        "rope": read_rope(fields, max_positions),
        "pattern": repeating(types),
        "sinks": True,
        **attention_bias(fields),
    }


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    sparse = experts_of(spec)
    return {
        **kinds_of(spec),
        "head_dim": spec.head_dim,
        "attention_bias": spec.qkv_bias,
        "num_local_experts": sparse.count,
        "num_experts_per_tok": sparse.chosen,
        "swiglu_limit": sparse.swiglu_limit,
        "swiglu_alpha": sparse.swiglu_alpha,
    }


FAMILY = ModelFamily(
    name="gpt_oss",
    architecture="GptOssForCausalLM",
    defaults={
        "max_position_embeddings": 131072,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "attention_bias": True,
        "rope_theta": 150000.0,
    },
    read=read,
    write=write,
    # experts_per_token and initial_context_length repeat other keys
    keys=ATTENTION_BIAS
    | {
        "num_local_experts", "num_experts_per_tok", "experts_per_token", "swiglu_limit",
        "swiglu_alpha", "initial_context_length",
    },
    block_tensors=TENSORS,
    turns={
        f"expert_{name}{bias}": (i, 2)
        for i, name in enumerate(("gate", "up"))
        for bias in ("", "_bias")
    },
)  # fmt: skip
