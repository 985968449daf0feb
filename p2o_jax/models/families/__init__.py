"""The supported model families, by `model_type` of config.json."""

from p2o_jax.models.families import (
    gemma2,
    gemma3,
    gpt_oss,
    granite,
    llama,
    ministral3,
    mistral,
    olmo,
    phi3,
    qwen2,
    qwen3,
    qwen3_5,
    qwen3_moe,
    smollm3,
)
from p2o_jax.models.families.family import ModelFamily

FAMILIES: dict[str, ModelFamily] = {
    family.name: family
    for family in (
        qwen3.FAMILY,
        qwen2.FAMILY,
        llama.FAMILY,
        mistral.FAMILY,
        gemma2.FAMILY,
        gemma3.FAMILY,
        olmo.OLMO2,
        olmo.OLMO3,
        smollm3.FAMILY,
        granite.FAMILY,
        phi3.FAMILY,
        ministral3.FAMILY,
        qwen3_moe.FAMILY,
        gpt_oss.FAMILY,
        qwen3_5.FAMILY,
        qwen2.SEED_OSS,
        llama.INTERNLM3,
        llama.IQUESTCODER,
    )
}
# checkpoints of several models: the text model's type where text_config does not name it
COMPOSITES = {"gemma3": "gemma3_text", "mistral3": "mistral", "qwen3_5": "qwen3_5_text"}
