"""The rules between settings: everything that can be known to be wrong before any file is read or program compiled."""

import dataclasses
import json
import math
import re
from urllib.parse import urlsplit

from p2o_jax.config import (
    LORA_TARGETS,
    Api,
    Config,
    Gepa,
    Mesh,
    longest_template_tokens,
    max_prompt_tokens,
    mesh_shape,
    minibatch_questions,
    trained_row_tokens,
)  # fmt: skip

_POSITIVE = (
    ("rollout", "questions"), ("rollout", "group_size"), ("rollout", "max_new_tokens"), ("rollout", "bank_tokens"),
    ("rollout", "prefill_tokens"), ("optim", "minibatch_questions"), ("optim", "micro_rows"), ("optim", "clip_norm"),
    ("gepa", "parents"), ("gepa", "minibatch"), ("gepa", "dev_size"), ("gepa", "min_hard"), ("gepa", "rollouts_per_eval"),
    ("gepa", "reflect_new_tokens"), ("gepa", "reflect_prompt_tokens"), ("gepa", "max_template_tokens"), ("eval", "rollouts"),
    ("api", "timeout_s"), ("api", "concurrency"), ("assign", "bandit_prior"),
    ("reward", "timeout_s"), ("model", "logit_chunk"), ("checkpoint", "keep"),
    ("checkpoint", "grace_s"), ("rollout", "temperature"), ("data", "max_prompt_tokens"),
    ("rollout", "max_sampling_rounds"), ("distill", "cap"), ("distill", "transfer_scale"), ("train", "rollout_is_cap"),
    ("mesh", "start_s"), ("mesh", "silent_s"), ("mesh", "absent_s"),
    ("world", "steps"), ("world", "p_chain_plain"), ("world", "hard_per_family"), ("world", "heldout_per_family"),
)  # fmt: skip
_FRACTIONS = (
    ("rollout", "top_p"),
    ("rollout", "min_p"),
    ("distill", "failed_weight"),
    ("optim", "warmup_frac"),
    ("optim", "b1"),
    ("optim", "b2"),
    ("world", "p_chain_plain"),
    ("assign", "bandit_discount"),
)
_NOT_NEGATIVE = (
    ("rollout", "slots"),
    ("rollout", "min_slots"),
    ("train", "epochs"),
    ("train", "watchdog_s"),
    ("train", "flat_rewards_steps"),
    ("checkpoint", "every_steps"),
    ("checkpoint", "keep_every"),
    ("mining", "extra_plain_groups"),
    ("mining", "max_successes"),
    ("api", "retries"),
    ("api", "backoff_s"),
    ("api", "max_tokens_total"),
    ("api", "max_dollars"),
    ("api", "dollars_per_million_prompt"),
    ("api", "dollars_per_million_reply"),
)
_LONGEST_WORLD_DOCUMENT = {"small": 75, "large": 108}  # tokens of a question under the longest template, with its whole chain


def _mesh_problems(mesh: Mesh, num_devices: int) -> list[str]:
    asked = (mesh.data, mesh.fsdp, mesh.tensor)
    shape = mesh_shape(mesh, num_devices)
    if sum(n == -1 for n in asked) > 1 or any(n == 0 or n < -1 for n in asked):
        return [f"config.mesh (data, fsdp, tensor)={asked}: sizes must be positive, and at most one of them -1"]
    if shape[0] * shape[1] * shape[2] != num_devices:
        return [f"config.mesh (data, fsdp, tensor)={asked} must multiply to the number of devices, {num_devices}"]
    return []


def api_problems(api: Api) -> list[str]:
    """A line for everything wrong with the endpoint's settings. What could be a key put in the wrong place is not repeated."""
    found = []
    url = urlsplit(api.base_url)
    if url.scheme not in ("http", "https") or not url.netloc or "@" in url.netloc or url.query:
        found.append("config.api.base_url: expected http(s)://host/path, without a user, a password or a query")
    if not api.model:
        found.append("config.api.model: config.gepa.reflector=api needs the name of a model")
    if not all(re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) for name in api.key_env):
        found.append("config.api.key_env: expected names of environment variables (capitals, digits and _), not keys")
    if api.max_dollars and not (api.dollars_per_million_prompt and api.dollars_per_million_reply):
        found.append("config.api.max_dollars needs config.api.dollars_per_million_prompt and dollars_per_million_reply")
    try:
        if api.extra_body and not isinstance(json.loads(api.extra_body), dict):
            raise ValueError
    except ValueError:
        found.append("config.api.extra_body: expected a JSON object")
    return found


def _cheapest_phase(gepa: Gepa) -> int:
    """The rollouts of the empty template on the smallest dev set that there can be, and of one proposal and its parent."""
    if gepa.dev_size < 1:
        dev = int(gepa.min_hard * gepa.dev_size)
    else:
        dev = int(gepa.dev_size) if gepa.min_hard >= 1.5 * gepa.dev_size else gepa.min_hard // 2
    return (max(dev, 1) + 2 * min(gepa.minibatch, max(gepa.min_hard - dev, 0))) * gepa.rollouts_per_eval


def problems(config: Config, num_devices: int) -> list[str]:
    """A line for every rule between settings that this (resolved) config breaks on so many devices."""
    found = _mesh_problems(config.mesh, num_devices)
    shards = 1 if found else num_devices // mesh_shape(config.mesh, num_devices)[2]
    rollout, optim, gepa = config.rollout, config.optim, config.gepa

    def rule(holds: bool, text: str) -> None:
        if not holds:
            found.append(text)

    for section, name in _POSITIVE:
        value = getattr(getattr(config, section), name)
        rule(value > 0, f"config.{section}.{name}={value} must be positive")
    for section, name in _FRACTIONS:
        value = getattr(getattr(config, section), name)
        rule(0 <= value <= 1, f"config.{section}.{name}={value} must lie in [0, 1]")
    for section, name in _NOT_NEGATIVE:
        value = getattr(getattr(config, section), name)
        rule(value >= 0, f"config.{section}.{name}={value} must not be negative")
    rule(
        config.data.prompt_template.count("{question}") == 1,
        f"config.data.prompt_template={config.data.prompt_template!r} must hold {{question}} once",
    )
    rule(bool(config.data.question_field), "config.data.question_field must name a field")
    rule(
        bool(config.data.answer_field or config.reward.fn),
        "config.data.answer_field='' (no reference answers) needs config.reward.fn to judge without them",
    )
    above, fn = config.reward.success_above, config.reward.fn
    rule(0 <= above < 1, f"config.reward.success_above={above} must lie in [0, 1): no score is above 1")
    rule(
        not fn or re.fullmatch(r"([A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*", fn) is not None,
        f"config.reward.fn={fn}: expected FILE.py:function or package.module:function",
    )
    rule(not config.reward.env or bool(fn), "config.reward.env needs config.reward.fn: the verifiers of this package read no variables")
    rule(
        all(re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) for name in config.reward.env),
        "config.reward.env: expected names of environment variables, not values",
    )
    for section, part in vars(config).items():
        for name, value in getattr(part, "__dict__", {}).items():
            rule(not isinstance(value, float) or math.isfinite(value), f"config.{section}.{name}={value} must be finite")
    size, longest_document = config.world.size, _LONGEST_WORLD_DOCUMENT[config.world.size]
    rule(
        config.world.row_tokens >= longest_document,
        f"config.world.row_tokens={config.world.row_tokens} must hold the longest document of config.world.size={size}, "
        f"{longest_document} tokens",
    )
    mini = minibatch_questions(config)
    rule(
        mini > 0 and rollout.questions % mini == 0,
        f"config.optim.minibatch_questions={optim.minibatch_questions} must divide config.rollout.questions={rollout.questions}",
    )
    for section, name in (("optim", "micro_rows"), ("rollout", "slots")):
        value = getattr(getattr(config, section), name)
        rule(value % shards == 0, f"config.{section}.{name}={value} must be a multiple of the mesh's data x fsdp = {shards}")
    rule(
        bool(rollout.prompt_buckets) and all(b > 0 for b in rollout.prompt_buckets),
        f"config.rollout.prompt_buckets={rollout.prompt_buckets} must be a list of positive lengths",
    )
    if rollout.prompt_buckets:
        longest = max_prompt_tokens(config)
        rule(
            longest >= config.data.max_prompt_tokens,
            f"config.rollout.prompt_buckets={rollout.prompt_buckets} must reach "
            f"config.data.max_prompt_tokens={config.data.max_prompt_tokens}",
        )
    rule(
        not gepa.enabled or gepa.reflector == "api" or not rollout.prompt_buckets or gepa.reflect_prompt_tokens < max_prompt_tokens(config),
        f"config.gepa.reflect_prompt_tokens={gepa.reflect_prompt_tokens} must be less than the last of "
        f"config.rollout.prompt_buckets={rollout.prompt_buckets}: the chat template adds some tokens",
    )
    need = trained_row_tokens(dataclasses.replace(config, optim=dataclasses.replace(optim, row_tokens=0))) if rollout.prompt_buckets else 0
    rule(
        optim.row_tokens == 0 or optim.row_tokens >= need,
        f"config.optim.row_tokens={optim.row_tokens} must hold the longest prompt trained on + config.rollout.max_new_tokens = {need}",
    )
    rule(
        optim.schedule != "cosine" or config.mining.extra_plain_groups == 0,
        f"config.optim.schedule=cosine ends with the last update, and config.mining.extra_plain_groups={config.mining.extra_plain_groups} "
        "makes their number unknown",
    )
    rule(
        gepa.rollouts_per_eval == 1 or gepa.temperature != 0,
        f"config.gepa.rollouts_per_eval={gepa.rollouts_per_eval} with config.gepa.temperature=0 would pay for the same answer twice",
    )
    rule(
        config.loss.overlong != "penalty" or 0 < config.loss.overlong_buffer <= rollout.max_new_tokens,
        f"config.loss.overlong_buffer={config.loss.overlong_buffer} must lie in 1..config.rollout.max_new_tokens={rollout.max_new_tokens}",
    )
    plain = config.assign.plain_rollouts
    rule(
        plain is not None and 0 <= plain <= rollout.group_size,
        f"config.assign.plain_rollouts={plain} must lie in 0..config.rollout.group_size={rollout.group_size}",
    )
    rule(
        config.mining.judge_on != "plain" or not gepa.enabled or bool(plain),
        "config.mining.judge_on=plain needs config.assign.plain_rollouts of at least 1: there would be no plain rollout to judge by",
    )
    rule(gepa.dev_size >= 1 or gepa.dev_size <= 0.5, f"config.gepa.dev_size={gepa.dev_size} must be a count, or a fraction up to 0.5")
    rule(gepa.budget != "calls" or gepa.max_metric_calls > 0, "config.gepa.budget=calls needs config.gepa.max_metric_calls")
    least = _cheapest_phase(gepa) if gepa.enabled and gepa.budget == "calls" and gepa.dev_size > 0 else 0
    rule(
        not 0 < gepa.max_metric_calls < least,
        f"config.gepa.max_metric_calls={gepa.max_metric_calls} pays for no proposal even in the smallest prompt phase "
        f"(config.gepa.min_hard={gepa.min_hard} questions): that takes {least} rollouts",
    )
    rule(gepa.budget != "full_evals" or gepa.max_full_evals > 0, "config.gepa.budget=full_evals needs config.gepa.max_full_evals")
    rule(
        config.train.epochs > 0 or (gepa.enabled and gepa.schedule == "first"),
        "config.train.epochs=0 needs config.gepa.enabled and config.gepa.schedule=first: there would be nothing to do",
    )
    longest_template = longest_template_tokens(config)
    rule(
        config.eval.template == "none"
        or not rollout.prompt_buckets
        or max_prompt_tokens(config) >= config.data.max_prompt_tokens + longest_template,
        f"config.eval.template=best needs config.rollout.prompt_buckets to reach config.data.max_prompt_tokens + the longest template = "
        f"{config.data.max_prompt_tokens + longest_template}",
    )
    found += api_problems(config.api) if gepa.enabled and gepa.reflector == "api" else []
    unknown = [name for name in config.lora.targets if name not in LORA_TARGETS]
    rule(not unknown and bool(config.lora.targets), f"config.lora.targets={config.lora.targets}: expected some of {LORA_TARGETS}")
    rule(config.lora.rank >= 0, f"config.lora.rank={config.lora.rank} must not be negative")
    return found
