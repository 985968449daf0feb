"""Qwen3.5, dense: three Gated DeltaNet layers before each full one, whose attention has an output
gate and rotates a part of the channels.
"""

import dataclasses
from typing import Any

from p2o_jax.models.families.family import BLOCK_TENSORS, ModelFamily
from p2o_jax.models.families.parts import ATTENTION_BIAS, attention_bias, repeating
from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import FULL, nested_rope, read_rope
from p2o_jax.models.spec import DeltaNet, LayerType, ModelSpec, Rope

LINEAR = "linear_attention"
# of the positions of images; in text all three are the same
_MROPE_KEYS = frozenset({"mrope_section", "mrope_interleaved"})
_QKV, _CONV = "linear_attn.in_proj_qkv.weight", "linear_attn.conv1d.weight"
_IN, _CHANNELS = ((1, 2), (0,)), ((0, 1), (2,), (3,))
TENSORS = {
    **BLOCK_TENSORS,
    "delta_q": (_QKV, _IN),
    "delta_k": (_QKV, _IN),
    "delta_v": (_QKV, _IN),
    "delta_gate": ("linear_attn.in_proj_z.weight", _IN),
    "delta_write": ("linear_attn.in_proj_b.weight", ((1,), (0,))),
    "delta_step": ("linear_attn.in_proj_a.weight", ((1,), (0,))),
    "conv_q": (_CONV, _CHANNELS),
    "conv_k": (_CONV, _CHANNELS),
    "conv_v": (_CONV, _CHANNELS),
    "a_log": ("linear_attn.A_log", ((0,),)),
    "step_bias": ("linear_attn.dt_bias", ((0,),)),
    "delta_norm": ("linear_attn.norm.weight", ((0,),)),
    "delta_o": ("linear_attn.out_proj.weight", ((2,), (0, 1))),
}


def read(fields: Fields, max_positions: int) -> dict[str, Any]:
    """Reads the fields of the spec that not all families have."""
    delta = DeltaNet(
        key_heads=fields.integer("linear_num_key_heads"),
        value_heads=fields.integer("linear_num_value_heads"),
        key_dim=fields.integer("linear_key_head_dim"),
        value_dim=fields.integer("linear_value_head_dim"),
        conv=fields.integer("linear_conv_kernel_dim"),
    )
    if delta.value_heads % delta.key_heads:
        fields.problems.append(
            f"linear_num_value_heads={delta.value_heads} must be a multiple of"
            f" linear_num_key_heads={delta.key_heads}"
        )
    if fields.values.get("attn_output_gate", True) is not True:
        fields.problems.append("attn_output_gate=false is not supported; supported: true")
    if delta.conv < 2:
        fields.problems.append(f"linear_conv_kernel_dim={delta.conv}: expected at least 2")
    interval = fields.integer("full_attention_interval", 4)
    usual = [
        LINEAR if (i + 1) % interval else FULL for i in range(fields.integer("num_hidden_layers"))
    ]
    kinds = fields.of_layers("layer_types", usual, (LINEAR, FULL))
    if missing := {LINEAR, FULL}.difference(kinds):
        fields.problems.append(f"layer_types has no {missing.pop()} layer")
    types = [LayerType(delta=delta if kind == LINEAR else None) for kind in kinds]
    rope = read_rope(fields, max_positions, partial=True, more_keys=_MROPE_KEYS)
    if "partial_rotary_factor" not in _stated(fields):
        rope = dataclasses.replace(rope, partial=0.25)
    return {
        "rope": rope,
        "pattern": repeating(types),
        "qk_norm": True,
        "norm_offset": True,
        "attn_gate": True,
        **attention_bias(fields),
    }


def _stated(fields: Fields) -> dict[str, Any]:
    """Returns what config.json states of positions, wherever it does."""
    given = fields.values.get("rope_scaling") or fields.values.get("rope_parameters")
    return {**fields.values, **(given if isinstance(given, dict) else {})}


def write(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys of config.json that not all families have. The family is younger than the
    older layout of positions.
    """
    delta = next(layer.delta for layer in spec.pattern if layer.delta)
    return {
        "head_dim": spec.head_dim,
        "attention_bias": spec.qkv_bias,
        "layer_types": [LINEAR if layer.delta else FULL for layer in spec.layer_types],
        "linear_num_key_heads": delta.key_heads,
        "linear_num_value_heads": delta.value_heads,
        "linear_key_head_dim": delta.key_dim,
        "linear_value_head_dim": delta.value_dim,
        "linear_conv_kernel_dim": delta.conv,
        "rope_parameters": _rope_parameters(spec.rope, spec.head_dim),
        "rope_scaling": None,
        "rope_theta": None,
    }


def _rope_parameters(rope: Rope, head_dim: int) -> dict[str, Any]:
    """Returns the positions of text, as a model of images states them: three sections of almost
    equal size.
    """
    pairs = int(head_dim * rope.partial) // 2
    return {
        **nested_rope(rope),
        "partial_rotary_factor": rope.partial,
        "mrope_interleaved": True,
        "mrope_section": [(pairs + 2 - i) // 3 for i in range(3)],
    }


FAMILY = ModelFamily(
    name="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    defaults={
        "max_position_embeddings": 32768,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
    },
    read=read,
    write=write,
    # mamba_ssm_dtype: states are float32 here in any case
    keys=ATTENTION_BIAS
    | {
        "layer_types", "full_attention_interval", "linear_num_key_heads", "linear_num_value_heads",
        "linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim",
        "mamba_ssm_dtype", "attn_output_gate", "mtp_num_hidden_layers",
        "mtp_use_dedicated_embeddings",
    },
    block_tensors=TENSORS,
    ignored=("mtp.",),
)  # fmt: skip
