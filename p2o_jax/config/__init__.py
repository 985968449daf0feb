"""Settings of a run: schema and defaults, rules between them, config files and flags."""

from p2o_jax.config.errors import ConfigError
from p2o_jax.config.lengths import (
    has_hints,
    longest_sequence,
    longest_template_tokens,
    max_prompt_tokens,
    max_templated_prompt_tokens,
    mesh_shape,
    minibatch_questions,
    minibatch_rollouts,
    model_reflects,
    reflector,
    templated_row_tokens,
    trained_row_tokens,
)
from p2o_jax.config.schema import PRESETS, Config, resolve
from p2o_jax.config.sections.data import DataConfig, RewardConfig, WorldConfig
from p2o_jax.config.sections.gepa import ApiConfig, GepaConfig
from p2o_jax.config.sections.model import (
    LORA_TARGETS,
    ChatConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
)
from p2o_jax.config.sections.rollout import AssignConfig, MiningConfig, RolloutConfig
from p2o_jax.config.sections.run import CheckpointConfig, EvalConfig, SftConfig, TrainConfig
from p2o_jax.config.sections.update import AdvConfig, DistillConfig, LossConfig, OptimConfig

__all__ = [
    "AdvConfig",
    "ApiConfig",
    "AssignConfig",
    "ChatConfig",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DistillConfig",
    "EvalConfig",
    "GepaConfig",
    "LORA_TARGETS",
    "LoraConfig",
    "LossConfig",
    "MeshConfig",
    "MiningConfig",
    "ModelConfig",
    "OptimConfig",
    "PRESETS",
    "RewardConfig",
    "RolloutConfig",
    "SftConfig",
    "TrainConfig",
    "WorldConfig",
    "longest_sequence",
    "longest_template_tokens",
    "max_prompt_tokens",
    "max_templated_prompt_tokens",
    "mesh_shape",
    "minibatch_questions",
    "minibatch_rollouts",
    "model_reflects",
    "reflector",
    "has_hints",
    "resolve",
    "templated_row_tokens",
    "trained_row_tokens",
]
