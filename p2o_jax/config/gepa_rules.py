"""The rules between settings of the prompt phase and of the endpoint that reflects."""

import json
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from p2o_jax.config import ApiConfig, Config, GepaConfig, reflector

Rules = Iterator[tuple[bool, str]]  # (whether it holds, the line if it does not)


def api_problems(api: ApiConfig) -> list[str]:
    """A line for everything wrong with the endpoint's settings. What could be a key put in the
    wrong place is not repeated.
    """
    lines = []
    url = urlsplit(api.base_url)
    if url.scheme not in ("http", "https") or not url.netloc or "@" in url.netloc or url.query:
        lines.append(
            "config.api.base_url: expected http(s)://host/path, without a user, a password or a"
            " query"
        )
    if not api.model:
        lines.append("config.api.model: config.gepa.reflector=api needs the name of a model")
    if not all(re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) for name in api.key_env):
        lines.append(
            "config.api.key_env: expected names of environment variables (capitals, digits and _),"
            " not keys"
        )
    if api.max_dollars and not (api.dollars_per_million_prompt and api.dollars_per_million_reply):
        lines.append(
            "config.api.max_dollars needs config.api.dollars_per_million_prompt and"
            " config.api.dollars_per_million_reply"
        )
    try:
        if api.extra_body and not isinstance(json.loads(api.extra_body), dict):
            raise ValueError
    except ValueError:
        lines.append("config.api.extra_body: expected a JSON object")
    return lines


def cheapest_phase(gepa: GepaConfig, num_seeds: int = 0) -> int:
    """The rollouts of the templates that a phase begins with on the smallest dev set that there can
    be, and of one proposal and its parent.
    """
    if gepa.dev_size < 1:
        dev = int(gepa.min_hard * gepa.dev_size)
    else:
        dev = int(gepa.dev_size) if gepa.min_hard >= 1.5 * gepa.dev_size else gepa.min_hard // 2
    pair = 2 * min(gepa.minibatch, max(gepa.min_hard - dev, 0))
    return (max(dev, 1) * (1 + num_seeds) + pair) * gepa.rollouts_per_eval


def rules(config: Config) -> Rules:
    """Whether each rule on the prompt phase holds, and the line if it does not."""
    gepa = config.gepa
    yield (
        gepa.rollouts_per_eval == 1 or gepa.temperature != 0,
        (
            f"config.gepa.rollouts_per_eval={gepa.rollouts_per_eval} with config.gepa.temperature=0"
            " would pay for the same answer twice"
        ),
    )
    yield (
        not gepa.dev_size > 0.5 or gepa.dev_size % 1 == 0,
        f"config.gepa.dev_size={gepa.dev_size} must be a count, or a fraction up to 0.5",
    )
    yield (
        gepa.acceptance != "margin" or gepa.acceptance_margin <= gepa.minibatch,
        (
            f"config.gepa.acceptance_margin={gepa.acceptance_margin} must be at most"
            f" config.gepa.minibatch={gepa.minibatch}: no child could be accepted"
        ),
    )
    yield (
        gepa.budget != "calls" or gepa.max_metric_calls > 0,
        "config.gepa.budget=calls needs config.gepa.max_metric_calls",
    )
    least = (
        cheapest_phase(gepa) if gepa.enabled and gepa.budget == "calls" and gepa.dev_size > 0 else 0
    )
    yield (
        not 0 < gepa.max_metric_calls < least,
        (
            f"config.gepa.max_metric_calls={gepa.max_metric_calls} pays for no proposal even in the"
            f" smallest prompt phase (config.gepa.min_hard={gepa.min_hard} questions): that takes"
            f" {least} rollouts"
        ),
    )
    yield (
        gepa.budget != "full_evals" or gepa.max_full_evals > 0,
        "config.gepa.budget=full_evals needs config.gepa.max_full_evals",
    )
    yield (
        config.train.epochs > 0 or (bool(reflector(config)) and gepa.schedule == "first"),
        (
            "config.train.epochs=0 needs config.gepa.enabled and config.gepa.schedule=first: there"
            " would be nothing to do"
        ),
    )
    yield (
        gepa.schedule != "adaptive" or gepa.carry_over != 0,
        (
            "config.gepa.schedule=adaptive needs config.gepa.carry_over: a phase that does not"
            " search uses the templates of the last one"
        ),
    )
    yield from _hint_rules(config)


def _hint_rules(config: Config) -> Rules:
    gepa, by_hint = config.gepa, config.gepa.reflector == "hint"
    yield (
        not by_hint or bool(config.data.hint_field),
        "config.gepa.reflector=hint needs config.data.hint_field",
    )
    yield (
        by_hint or not config.data.hint_field,
        (
            f"config.data.hint_field={config.data.hint_field} needs config.gepa.reflector=hint:"
            " nothing else reads hints"
        ),
    )
    evolved = {
        "gepa.seed_templates": gepa.seed_templates,
        "eval.template": "" if config.eval.template == "none" else config.eval.template,
    }
    for key, value in evolved.items():
        yield (
            not (by_hint and value),
            f"config.{key}={value} needs templates that evolve; config.gepa.reflector=hint",
        )
