"""Every setting of a run: the config, and the presets.

The sections are in `config.sections`; defaults are the paper's. A field that is None and named in
`PRESETS` is filled in by `resolve` from the preset. `config.loading` makes configs of files and
flags, `config.rules` lists what is wrong with one.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from p2o_jax.config import reward_terms
from p2o_jax.config.sections.data import DataConfig, RewardConfig, WorldConfig
from p2o_jax.config.sections.gepa import ApiConfig, GepaConfig
from p2o_jax.config.sections.model import ChatConfig, LoraConfig, MeshConfig, ModelConfig
from p2o_jax.config.sections.rollout import AssignConfig, MiningConfig, RolloutConfig
from p2o_jax.config.sections.run import CheckpointConfig, EvalConfig, SftConfig, TrainConfig
from p2o_jax.config.sections.update import AdvConfig, DistillConfig, LossConfig, OptimConfig
from p2o_jax.config.setting import section, setting


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    preset: Literal["faithful", "recommended"] = setting(
        "recommended",
        "Defaults of the settings that differ between the two: faithful is the released code's"
        " behaviour, recommended has our improvements.",
    )
    model: ModelConfig = section(ModelConfig)
    world: WorldConfig = section(WorldConfig)
    data: DataConfig = section(DataConfig)
    lora: LoraConfig = section(LoraConfig)
    chat: ChatConfig = section(ChatConfig)
    mesh: MeshConfig = section(MeshConfig, resumable=True)
    rollout: RolloutConfig = section(RolloutConfig)
    reward: RewardConfig = section(RewardConfig)
    mining: MiningConfig = section(MiningConfig)
    adv: AdvConfig = section(AdvConfig)
    distill: DistillConfig = section(DistillConfig)
    loss: LossConfig = section(LossConfig)
    optim: OptimConfig = section(OptimConfig)
    gepa: GepaConfig = section(GepaConfig)
    api: ApiConfig = section(ApiConfig, resumable=True)
    assign: AssignConfig = section(AssignConfig)
    eval: EvalConfig = section(EvalConfig, resumable=True)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    train: TrainConfig = section(TrainConfig)
    sft: SftConfig = section(SftConfig)
    arms: tuple[str, ...] = setting(
        (),
        'Runs to compare, each as "name section.key=value section.key=value". Empty: a single run.',
    )


PRESETS: dict[str, dict[str, Any]] = {
    # As the released code does it, the oddities that matter for its numbers included.
    "faithful": {
        "mining.judge_on": "all",
        "distill.eps_low": 0.99,
        "distill.drop_failed_templated": False,
        "gepa.schedule": "every_epoch",
        "gepa.carry_over": 0,
        "gepa.temperature": 0.0,
        "gepa.count_unsolved_fronts": True,
        "gepa.skip_perfect": False,
        "gepa.fill_width": False,
        "gepa.max_iterations": 0,
        "gepa.patience": 0,
        "gepa.charge_all": False,
        "gepa.filter_replies": False,
        "gepa.leak_guard": False,
        "assign.plain_rollouts": 0,
    },
    # ▲ Fixes for the known weaknesses that docs/algorithm.md lists; each can be switched off alone.
    "recommended": {
        "mining.judge_on": "plain",
        "distill.eps_low": 1.0,  # docs/results.md
        "distill.drop_failed_templated": True,  # docs/results.md
        "gepa.schedule": "adaptive",  # docs/results.md
        "gepa.carry_over": 3,
        "gepa.temperature": 0.0,
        "gepa.count_unsolved_fronts": False,
        "gepa.skip_perfect": True,
        "gepa.fill_width": True,
        "gepa.max_iterations": 100,
        "gepa.patience": 8,
        "gepa.charge_all": True,
        "gepa.filter_replies": True,
        "gepa.leak_guard": True,
        "assign.plain_rollouts": 2,
    },
}


def resolve(config: Config) -> Config:
    """The config with every field that its preset decides filled in, unless it was set."""
    for key, value in PRESETS[config.preset].items():
        section, name = key.split(".")
        part = getattr(config, section)
        if getattr(part, name) is None:
            config = dataclasses.replace(
                config, **{section: dataclasses.replace(part, **{name: value})}
            )
    reward, data = config.reward, config.data
    if reward.fn:
        config = dataclasses.replace(
            config, reward=dataclasses.replace(reward, fn=reward_terms.absolute(reward.fn))
        )
    if data.answers == "auto":
        answers = "final" if reward_terms.compares_answers(reward.fn) else "raw"
        config = dataclasses.replace(config, data=dataclasses.replace(data, answers=answers))
    return config
