"""The supported model families, by `model_type` of config.json."""

from p2o_jax.models.families import llama, mistral, qwen2, qwen3
from p2o_jax.models.families.family import ModelFamily

FAMILIES: dict[str, ModelFamily] = {
    family.name: family for family in (qwen3.FAMILY, qwen2.FAMILY, llama.FAMILY, mistral.FAMILY)
}
