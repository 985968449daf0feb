"""Phi-3 and Phi-4-mini: fused projections, a part of the channels rotated, and longrope."""

from typing import Any

from p2o_jax.models.families.family import BLOCK_TENSORS, ModelFamily
from p2o_jax.models.families.parts import all_sliding
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import read_rope
from p2o_jax.models.spec import ModelSpec

_QKV, _GATE_UP = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"
# several of our arrays are consecutive rows of a tensor, in this order
TENSORS = {
    **BLOCK_TENSORS,
    "q": (_QKV, ((1, 2), (0,))),
    "k": (_QKV, ((1, 2), (0,))),
    "v": (_QKV, ((1, 2), (0,))),
    "gate": (_GATE_UP, ((1,), (0,))),
    "up": (_GATE_UP, ((1,), (0,))),
}


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    rope = read_rope(fields, max_positions, ("default", "longrope"), partial=True)
    return {"rope": rope, **all_sliding(fields)}


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have."""
    original = spec.rope.original_max_positions or spec.max_positions
    return {
        "partial_rotary_factor": spec.rope.partial,
        "original_max_position_embeddings": original,
        "sliding_window": spec.pattern[0].window or None,
    }


FAMILY = ModelFamily(
    name="phi3",
    architecture="Phi3ForCausalLM",
    defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    kv_heads_default=True,
    read=read,
    write=write,
    block_tensors=TENSORS,
)
