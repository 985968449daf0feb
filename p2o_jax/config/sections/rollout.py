"""Sampling, and what follows from it: hard questions and their templates."""

from dataclasses import dataclass
from typing import Literal

from p2o_jax.config.ranges import TEMPERATURE
from p2o_jax.config.setting import setting


@dataclass(frozen=True)
class RolloutConfig:
    """Sampling of rollouts.

    `top_k`, `top_p` and `min_p` apply to everything that the model writes: training, evaluation,
    candidates of the prompt phase and reflection (p2o_jax/rollout/sampling_params.py).
    """

    questions: int = setting(128, "Questions per training step.", ge=1)
    group_size: int = setting(6, "G: rollouts per question.", ge=1)
    temperature: float = setting(0.6, "Sampling temperature in training.", TEMPERATURE)
    top_k: int = setting(0, "Sample among this many most likely tokens. 0: off.", ge=0)
    top_p: float = setting(
        1.0, "Sample among the most likely tokens that reach this probability. 1: off.", gt=0, le=1
    )
    min_p: float = setting(
        0.0,
        "Sample among tokens with at least this fraction of the top probability. 0: off.",
        ge=0,
        lt=1,
    )
    max_new_tokens: int = setting(12288, "Longest response, in tokens.", ge=1)
    prompt_buckets: tuple[int, ...] = setting(
        (512, 1024, 2048, 4096, 32768),
        "Prompt lengths, in tokens; a prompt is padded to the next one. The largest is the longest"
        " prompt that can be sampled from.",
        ge=1,
        resumable=True,
    )
    slots: int = setting(
        0,
        "Rollouts decoded side by side, over all devices. 0: as many as fit into their memory.",
        ge=0,
        resumable=True,
    )
    min_slots: int = setting(
        8,
        "On CPU: slots per shard down to which slots are halved while no rollouts wait. 0: never"
        " halve.",
        ge=0,
        resumable=True,
    )
    prompt_cache_tokens: int = setting(
        524288,
        "Prompt tokens whose keys and values are kept at a time, over all devices.",
        ge=1,
        resumable=True,
    )
    prefill_tokens: int = setting(
        2048,
        "Prompt tokens prefilled at a time on each shard of the mesh's data x fsdp.",
        ge=1,
        resumable=True,
    )
    share_prefixes: bool = setting(
        True, "Prefill what prompts of a wave have in common at their start only once.",
        resumable=True,
    )  # fmt: skip
    cache_dtype: Literal["auto", "int8"] = setting(
        "auto",
        "Dtype of keys and values while sampling. auto: the compute dtype.",
        # what a run that ran out of memory is advised to set; like the mesh it changes roundings
        resumable=True,
    )
    dynamic_sampling: bool = setting(
        False,
        "Ask further questions until the step is full of groups with a non-zero advantage (DAPO).",
    )
    max_sampling_rounds: int = setting(
        10, "Rounds of dynamic sampling per step, including the step's own batch.", ge=1
    )


@dataclass(frozen=True)
class MiningConfig:
    """Which questions are hard, and so get templates."""

    max_successes: int = setting(
        1,
        "A question is hard if its group has at most this many successes and at least one failure.",
        ge=0,
    )
    judge_on: Literal["all", "plain"] | None = setting(
        None, "Rollouts that decide whether a question is hard: all, or only plain ones."
    )
    extra_plain_groups: int = setting(
        0,
        "▲ Additional plain groups of G for each question that was hard in the last epoch.",
        ge=0,
    )
    skip_below: float = setting(
        0.0,
        "▲ Leave out questions whose group is unlikely to have both successes and failures, by what"
        " their recent rollouts say: less likely than this share of the batch's mean. Each question"
        " is asked in one of four epochs at least. 0: always ask all.",
        ge=0,
        lt=1,
    )


@dataclass(frozen=True)
class AssignConfig:
    """Which templates hard questions are asked under."""

    plain_rollouts: int | None = setting(
        None, "Rollouts of each templated group that are asked without a template.", ge=0
    )
    same_template_in_group: bool = setting(
        False, "Ask all templated rollouts of a group under the same template."
    )
