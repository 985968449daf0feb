"""Qwen3 with experts in all layers, or in those that mlp_only_layers and decoder_sparse_step
leave.
"""

from typing import Any

from p2o_jax.models.families import qwen3
from p2o_jax.models.families.family import ModelFamily
from p2o_jax.models.families.parts import ATTENTION_BIAS, experts, experts_of, repeating
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.spec import LayerType, ModelSpec


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have. The number of experts is
    num_local_experts in newer files.
    """
    newer = "num_local_experts" in fields.values
    sparse = experts(
        fields,
        "num_local_experts" if newer else "num_experts",
        "moe_intermediate_size",
        normalized=fields.flag("norm_topk_prob"),
    )
    step = fields.integer("decoder_sparse_step", 1)
    dense = fields.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(i) is int for i in dense):
        fields.problems.append(f"mlp_only_layers={dense!r}: expected a list of whole numbers")
        dense = []
    types = [
        LayerType(experts=None if i in dense or (i + 1) % step else sparse)
        for i in range(fields.integer("num_hidden_layers"))
    ]
    if not any(layer.experts for layer in types):
        fields.problems.append("mlp_only_layers and decoder_sparse_step leave no experts")
    return {**qwen3.read(fields, max_positions), "pattern": repeating(types)}


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    sparse = experts_of(spec)
    return {
        **qwen3.write(spec),
        "num_experts": sparse.count,
        "num_experts_per_tok": sparse.chosen,
        "moe_intermediate_size": sparse.mlp,
        "norm_topk_prob": sparse.normalized,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, layer in enumerate(spec.layer_types) if not layer.experts],
    }


FAMILY = ModelFamily(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    defaults={
        "max_position_embeddings": 32768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    read=read,
    write=write,
    keys=ATTENTION_BIAS
    | {
        "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size",
        "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers",
    },
)  # fmt: skip
