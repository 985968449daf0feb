"""The rules between settings: everything that can be known to be wrong before any file is read
or program compiled.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from p2o_jax.config import (
    LORA_TARGETS,
    Config,
    MeshConfig,
    WorldConfig,
    gepa_rules,
    longest_template_tokens,
    max_prompt_tokens,
    mesh_shape,
    minibatch_questions,
    model_reflects,
    reflector,
    reward_terms,
    setting,
    trained_row_tokens,
)
from p2o_jax.config.gepa_rules import Rules
from p2o_jax.config.ranges import Range

# tokens of a question under the longest template, with its whole chain
_LONGEST_WORLD_DOCUMENT = {
    "small": 75,
    "medium": 82,
    "large": 108,
}


def numbers(part: Any, where: str = "config") -> Iterator[tuple[str, Any, Range]]:
    """(key, value, range) of every number in the config; a list is a tuple of numbers."""
    for field in dataclasses.fields(part):
        value, within = getattr(part, field.name), setting.range_of(field)
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{where}.{field.name}")
        elif within and value is not None:
            yield f"{where}.{field.name}", value, within


def range_problems(config: Config) -> list[str]:
    """A line for every number outside of the range that its declaration gives."""
    lines = []
    for key, value, within in numbers(config):
        several = isinstance(value, tuple)
        broken = next(filter(None, map(within.problem, value if several else (value,))), "")
        if broken:
            lines.append(f"{key}={value}{': each' if several else ''} {broken}")
    return lines


def _mesh_problems(mesh: MeshConfig, num_devices: int) -> list[str]:
    asked = (mesh.data, mesh.fsdp, mesh.tensor)
    if not all(size == -1 or size > 0 for size in asked):
        return []  # a line of `range_problems` names each
    if asked.count(-1) > 1:
        return [
            f"config.mesh (data, fsdp, tensor)={asked}: sizes must be positive, and at most one of"
            " them -1"
        ]
    if math.prod(mesh_shape(mesh, num_devices)) != num_devices:
        return [
            f"config.mesh (data, fsdp, tensor)={asked} must multiply to the number of devices,"
            f" {num_devices}"
        ]
    return []


def problems(config: Config, num_devices: int | None) -> list[str]:
    """A line for every number out of range, and for every rule between settings, that this
    (resolved) config breaks.
    """
    return [
        *range_problems(config),
        *(_mesh_problems(config.mesh, num_devices) if num_devices else []),
        *_broken(_data_rules(config)),
        *reward_terms.problems(config.reward.fn),
        *_broken(_world_rules(config.world)),
        *_broken(_training_rules(config, num_devices)),
        *(
            _broken(_length_rules(config))
            if config.rollout.prompt_buckets
            else ["config.rollout.prompt_buckets=() must name a length"]
        ),
        *_broken(gepa_rules.rules(config)),
        *(gepa_rules.api_problems(config.api) if reflector(config) == "api" else []),
    ]


def _broken(rules: Rules) -> list[str]:
    return [text for holds, text in rules if not holds]


def _data_rules(config: Config) -> Rules:
    data, fn = config.data, config.reward.fn
    yield (
        data.prompt_template.count("{question}") == 1,
        f"config.data.prompt_template={data.prompt_template!r} must hold {{question}} once",
    )
    yield bool(data.question_field), "config.data.question_field must name a field"
    yield (
        bool(data.answer_field or not reward_terms.compares_answers(fn)),
        (
            "config.data.answer_field='' (no reference answers) needs config.reward.fn to judge"
            " without them"
        ),
    )
    yield (
        not config.reward.env or bool(reward_terms.custom_functions(fn)),
        "config.reward.env needs a function in config.reward.fn: the verifiers of this package read"
        " no variables",
    )
    yield (
        all(re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) for name in config.reward.env),
        "config.reward.env: expected names of environment variables, not values",
    )


def _world_rules(world: WorldConfig) -> Rules:
    longest = _LONGEST_WORLD_DOCUMENT[world.size]
    yield (
        world.row_tokens >= longest,
        (
            f"config.world.row_tokens={world.row_tokens} must hold the longest document of"
            f" config.world.size={world.size}, {longest} tokens"
        ),
    )
    yield (
        world.heads % max(world.kv_heads, 1) == 0,
        (
            f"config.world.heads={world.heads} must be a multiple of"
            f" config.world.kv_heads={world.kv_heads}"
        ),
    )
    yield (
        world.head_dim % 2 == 0,
        f"config.world.head_dim={world.head_dim} must be even: rotary embeddings turn pairs",
    )


def _training_rules(config: Config, num_devices: int | None) -> Rules:
    rollout, optim, loss, plain = (
        config.rollout,
        config.optim,
        config.loss,
        config.assign.plain_rollouts,
    )
    mini = minibatch_questions(config)
    shape = mesh_shape(config.mesh, num_devices or 1)
    shards = num_devices // shape[2] if num_devices and math.prod(shape) == num_devices else 1
    yield (
        mini > 0 and rollout.questions % mini == 0,
        (
            f"config.optim.minibatch_questions={optim.minibatch_questions} must divide"
            f" config.rollout.questions={rollout.questions}"
        ),
    )
    for key, value in (("optim.micro_rows", optim.micro_rows), ("rollout.slots", rollout.slots)):
        yield (
            value % shards == 0,
            f"config.{key}={value} must be a multiple of the mesh's data x fsdp = {shards}",
        )
    for key, value in (
        ("extra_plain_groups", config.mining.extra_plain_groups),
        ("skip_below", config.mining.skip_below),
    ):
        yield (
            optim.schedule != "cosine" or value == 0,
            (
                "config.optim.schedule=cosine ends with the last update, and"
                f" config.mining.{key}={value} makes their number unknown"
            ),
        )
    yield (
        loss.overlong != "penalty" or loss.overlong_buffer <= rollout.max_new_tokens,
        (
            f"config.loss.overlong_buffer={loss.overlong_buffer} must lie in"
            f" 1..config.rollout.max_new_tokens={rollout.max_new_tokens}"
        ),
    )
    yield from _estimator_rules(config)
    yield (
        plain is not None and plain <= rollout.group_size,
        (
            f"config.assign.plain_rollouts={plain} must lie in"
            f" 0..config.rollout.group_size={rollout.group_size}"
        ),
    )
    yield (
        config.mining.judge_on != "plain" or not config.gepa.enabled or bool(plain),
        (
            "config.mining.judge_on=plain needs config.assign.plain_rollouts of at least 1: there"
            " would be no plain rollout to judge by"
        ),
    )
    targets = config.lora.targets
    yield (
        bool(targets) and set(targets) <= set(LORA_TARGETS),
        f"config.lora.targets={targets}: expected some of {LORA_TARGETS}",
    )


def _estimator_rules(config: Config) -> Rules:
    """Rules on values of advantages, loss and importance weights that exclude each other."""
    adv, loss, train = config.adv, config.loss, config.train
    yield (
        adv.kind != "maxrl" or loss.overlong != "penalty",
        (
            f"config.adv.kind={adv.kind} needs rewards that are not negative;"
            " config.loss.overlong=penalty makes some so"
        ),
    )
    yield (
        loss.ratio != "dppo" or max(loss.clip_low, loss.clip_high) < 1,
        (
            f"config.loss.clip_low={loss.clip_low} and clip_high={loss.clip_high} must be less than"
            " 1 with config.loss.ratio=dppo: no probability changes by more"
        ),
    )
    yield (
        not train.rollout_is.endswith("_mask") or train.rollout_is_cap > 1,
        (
            f"config.train.rollout_is_cap={train.rollout_is_cap} must be more than 1 with"
            f" config.train.rollout_is={train.rollout_is}: all tokens would be masked"
        ),
    )
    yield (
        loss.self_distill_coef == 0 or (config.distill.mode != "off" and config.gepa.enabled),
        (
            f"config.loss.self_distill_coef={loss.self_distill_coef} needs templated rollouts that"
            f" are trained on the plain prompt; config.distill.mode={config.distill.mode},"
            f" config.gepa.enabled={str(config.gepa.enabled).lower()}"
        ),
    )


def _length_rules(config: Config) -> Rules:
    """Rules on lengths in tokens, where there is at least one prompt bucket."""
    gepa, buckets, longest = config.gepa, config.rollout.prompt_buckets, max_prompt_tokens(config)
    plain = config.data.max_prompt_tokens
    yield (
        longest >= plain,
        f"config.rollout.prompt_buckets={buckets} must reach config.data.max_prompt_tokens={plain}",
    )
    yield (
        not model_reflects(config) or gepa.reflect_prompt_tokens < longest,
        (
            f"config.gepa.reflect_prompt_tokens={gepa.reflect_prompt_tokens} must be less than the"
            f" last of config.rollout.prompt_buckets={buckets}: the chat template adds some tokens"
        ),
    )
    row, optim = config.optim.row_tokens, dataclasses.replace(config.optim, row_tokens=0)
    need = trained_row_tokens(dataclasses.replace(config, optim=optim))
    yield (
        row == 0 or row >= need,
        (
            f"config.optim.row_tokens={row} must hold the longest prompt trained on +"
            f" config.rollout.max_new_tokens = {need}"
        ),
    )
    templated = plain + longest_template_tokens(config)
    yield (
        config.eval.template == "none" or longest >= templated,
        (
            "config.eval.template=best needs config.rollout.prompt_buckets to reach "
            f"config.data.max_prompt_tokens + the longest template = {templated}"
        ),
    )


def notices(config: Config) -> list[str]:
    """A line for every value that is within its range, and yet not likely to be meant."""
    loss, optim, temperature = config.loss, config.optim, config.rollout.temperature
    widest, narrowest = max(loss.clip_low, loss.clip_high), min(loss.clip_low, loss.clip_high)
    unusual = (
        (
            loss.ratio == "sequence" and widest > 0.01,
            (
                f"config.loss.clip_low={loss.clip_low} and clip_high={loss.clip_high} with"
                " config.loss.ratio=sequence: GSPO's paper has 3e-4 and 4e-4, as the ratio of a"
                " whole sequence is a mean over its tokens; with these hardly anything is clipped"
            ),
        ),
        (
            loss.ratio == "token" and narrowest < 0.01,
            (
                f"config.loss.clip_low={loss.clip_low} and clip_high={loss.clip_high} with"
                " config.loss.ratio=token: the usual 0.2 lets a token change 20 %; with these most"
                " tokens are clipped as soon as there is a second update on a batch"
            ),
        ),
        (
            loss.ratio in ("token", "sequence") and loss.dual_clip < 1 + loss.clip_high,
            (
                f"config.loss.dual_clip={loss.dual_clip} is less than 1 +"
                f" config.loss.clip_high={loss.clip_high}: it clips tokens with a negative"
                " advantage inside the range that PPO leaves free"
            ),
        ),
        (optim.lr == 0, "config.optim.lr=0: no weight changes"),
        (
            optim.lr > 1e-3 and config.lora.rank == 0,
            (
                f"config.optim.lr={optim.lr} with all weights trained: the paper has 1e-6, and"
                " rates above 1e-3 destroy pretrained weights"
            ),
        ),
        (
            not 0.3 <= temperature <= 1.5,
            (
                f"config.rollout.temperature={temperature} is far from 1: rollouts of a group are"
                " alike at low temperatures, and noise at high ones; either way there is little to"
                " learn from"
            ),
        ),
    )
    return [
        *(f"unusual: {text}" for holds, text in unusual if holds),
        *reward_terms.notices(config.reward.fn, config.reward.success_above),
    ]
