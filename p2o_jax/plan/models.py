"""The models that `plan` knows by name."""

from typing import Any

from p2o_jax.models import hf_config
from p2o_jax.models.spec import ModelSpec, Rope


def _from_config(family: str, width: int, layers: int, mlp: int, **more: Any) -> ModelSpec:
    """Returns a model by its family, sizes, and other keys of config.json."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": mlp}
    spec, problems = hf_config.spec_of({"model_type": family, **sizes, **more})
    assert not problems, problems
    return spec


_QWEN3: dict[str, Any] = {
    "family": "qwen3",
    "vocab": 151936,
    "head_dim": 128,
    "rope": Rope(theta=1e6),
    "qk_norm": True,
}
SPECS = {
    "qwen3-0.6b": ModelSpec(
        width=1024, layers=28, heads=16, kv_heads=8, mlp=3072, tied=True, **_QWEN3
    ),
    "qwen3-1.7b": ModelSpec(
        width=2048, layers=28, heads=16, kv_heads=8, mlp=6144, tied=True, **_QWEN3
    ),
    "qwen3-4b": ModelSpec(
        width=2560, layers=36, heads=32, kv_heads=8, mlp=9728, tied=True, **_QWEN3
    ),
    "qwen3-8b": ModelSpec(width=4096, layers=36, heads=32, kv_heads=8, mlp=12288, **_QWEN3),
    "qwen3-14b": ModelSpec(width=5120, layers=40, heads=40, kv_heads=8, mlp=17408, **_QWEN3),
    "qwen3-32b": ModelSpec(width=5120, layers=64, heads=64, kv_heads=8, mlp=25600, **_QWEN3),
    "gemma3-4b": _from_config(
        "gemma3_text",
        width=2560,
        layers=34,
        mlp=10240,
        sliding_window=1024,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "olmo3-7b": _from_config(
        "olmo3",
        width=4096,
        layers=32,
        mlp=11008,
        num_attention_heads=32,
        vocab_size=100278,
        max_position_embeddings=65536,
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "smollm3-3b": _from_config(
        "smollm3",
        width=2048,
        layers=36,
        mlp=11008,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=128256,
        max_position_embeddings=65536,
        rope_theta=5000000.0,
    ),
    "qwen3.5-4b": _from_config(
        "qwen3_5_text",
        width=2560,
        layers=32,
        mlp=9216,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=248320,
        max_position_embeddings=262144,
        rope_theta=1e7,
        tie_word_embeddings=True,
    ),
    "qwen3-30b-a3b": _from_config(
        "qwen3_moe",
        width=2048,
        layers=48,
        mlp=6144,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        vocab_size=151936,
        rope_theta=1e6,
        norm_topk_prob=True,
    ),
    "gpt-oss-20b": _from_config(
        "gpt_oss",
        width=2880,
        layers=24,
        mlp=2880,
        num_attention_heads=64,
        num_key_value_heads=8,
        num_local_experts=32,
        vocab_size=201088,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
        },
    ),
}
