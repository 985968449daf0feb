"""Config files and flags: Python files with a `get_config()` that returns a ConfigDict, and
`--config.a.b=value` overrides.

ConfigDict keys are locked, so that a misspelt one fails where it is written; `from_config_dict`
checks every type.
"""

import dataclasses
import importlib.util
import json
import os
import re
import traceback
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict, config_dict

from p2o_jax.config import Config, ConfigError, names, resolve, rules
from p2o_jax.config.setting import describe, options, sections, settings
from p2o_jax.config.values import parse, validated


def to_config_dict(config: Any) -> ConfigDict:
    """The config as a ConfigDict with locked keys; `X | None` fields are typed placeholders."""
    values = ConfigDict()
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif hints[f.name] is float:
            value = float(value)  # a ConfigDict holds a field to the type of its first value
        elif value is None:
            value = config_dict.placeholder(_placeholder_type(hints[f.name]))
        values[f.name] = value
    return values.lock()


def from_config_dict(values: ConfigDict) -> Config:
    """The typed Config.

    Raises:
        ConfigError: with a line for every unknown key and every value of the wrong type; then also
            for every range and rule that the other settings break.
    """
    config, wrong = _typed(values)
    if wrong:
        raise ConfigError(*wrong.values(), *_other_problems(config, wrong))
    return config


def override(values: ConfigDict, assignments: Sequence[tuple[str, str]]) -> None:
    """Sets `a.b = text` for every pair, each text parsed as the field's type.

    Raises:
        ConfigError: with a line for every unknown key and every text that is not of the field's
            type; then also for everything that is wrong with the other settings.
    """
    wrong: dict[str, str] = {}
    known = settings(Config)
    for key, text in assignments:
        if key not in known:
            wrong[key] = f"config.{key}: no such key{names.did_you_mean(key)}"
            continue
        hint = known[key].hint
        section, _, name = key.rpartition(".")
        try:
            value = validated(parse(text, hint), hint)
            part: Any = values[section] if section else values
            part[name] = value
        except (ValueError, TypeError, KeyError):
            wrong[key] = f"config.{key}={text}: expected {describe(hint)}"
    if wrong:
        config, more = _typed(values)
        wrong = {**more, **wrong}
        raise ConfigError(*wrong.values(), *_other_problems(config, wrong))


def _typed(values: ConfigDict) -> tuple[Config, dict[str, str]]:
    """The config, with defaults for what is wrong, and a line by key for every unknown key and
    every value of the wrong type.
    """
    known, parts = settings(Config), sections(Config)
    typed: dict[str, dict[str, Any]] = {name: {} for name in ("", *parts)}
    wrong: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for key, value in _flat(values):
        section, _, name = key.rpartition(".")
        if key in known:
            try:
                typed[section][name] = validated(value, known[key].hint)
            except ValueError:
                wrong[key] = f"config.{key}={value!r}: expected {describe(known[key].hint)}"
        elif key in parts:
            wrong[key] = f"config.{key}={value!r}: expected the settings of the section {key}"
        else:
            unknown[key] = f"config.{key}: no such key{names.did_you_mean(key)}"
    built = {name: cls(**typed[name]) for name, cls in parts.items()}
    in_order = {key: wrong[key] for key in (*parts, *known) if key in wrong}
    return Config(**typed[""], **built), unknown | in_order


def _flat(values: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of every setting."""
    for name in values:
        value = values[name]
        if name in sections(Config) and isinstance(value, ConfigDict | Mapping):
            yield from ((f"{name}.{field}", value[field]) for field in value)
        else:
            yield name, value


def _other_problems(config: Config, wrong: Iterable[str]) -> list[str]:
    """A line for every broken range and rule, except those that name a wrong key."""
    keys = [re.compile(rf"config\.{re.escape(key)}\b") for key in wrong]
    lines = rules.problems(resolve(config), None)
    return [line for line in lines if not any(key.search(line) for key in keys)]


def _placeholder_type(hint: Any) -> type:
    option = next(o for o in options(hint) if o is not type(None))
    return str if typing.get_origin(option) is Literal else option


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """The Config of a config file with overrides.

    Raises:
        ConfigError: no such file, an error in it, or what `override` and `from_config_dict` raise.
    """
    return from_config_dict(load_config_dict(path, overrides))


def load_config_dict(path: str, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """What the file's `get_config()` returns, with overrides."""
    if not os.path.isfile(path):
        raise ConfigError(f"--config={path}: no such file")
    spec = importlib.util.spec_from_file_location("p2o_jax_config_file", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        values = module.get_config()
    except Exception as e:  # whatever a user's file raises is reported in one line
        line = next(
            (
                f.lineno
                for f in reversed(traceback.extract_tb(e.__traceback__))
                if f.filename == path
            ),
            0,
        )
        raise ConfigError(f"{path}:{line}: {type(e).__name__}: {e}") from e
    if not isinstance(values, ConfigDict):
        raise ConfigError(
            f"{path}: get_config() must return a ConfigDict"
            " (p2o_jax.config.loading.to_config_dict(Config()))"
        )
    override(values, overrides)
    return values


RESERVED = (
    "base",
    "seconds",
    "p_chain_plain",
    "by_family",
    "best_templates",
)


def _is_arm_name(name: str) -> bool:
    return (
        name.isidentifier()
        and name not in RESERVED
        and not name.startswith(("tokens_", "seconds_", "frac_", "hard_"))
    )


def arms(values: ConfigDict) -> dict[str, Config]:
    """The Config of each of `config.arms`, by name: the config itself with the arm's own settings
    on top.

    Raises:
        ConfigError: with a line for every wrong setting of every arm.
    """
    arms_by_name: dict[str, Config] = {}
    problems: list[str] = []
    texts = typing.cast(tuple[str, ...], values.arms)
    arm_names = [text.split()[0] if text.split() else "" for text in texts]
    if len(set(arm_names)) < len(arm_names) or not all(map(_is_arm_name, arm_names)):
        rule = (
            "every arm needs a name of its own, of letters, digits and _; not"
            f" {', '.join(RESERVED)}"
        )
        raise ConfigError(f"config.arms={values.arms}: {rule}")
    for text in texts:
        name, *settings = text.split()
        own = values.copy_and_resolve_references().lock()
        try:
            override(own, [(key, value) for key, _, value in (s.partition("=") for s in settings)])
            own.arms = ()
            arms_by_name[name] = from_config_dict(own)
        except ConfigError as e:
            problems += [f"config.arms, {name}: {line}" for line in e.problems]
    if problems:
        raise ConfigError(*problems)
    return arms_by_name


def read_config(workdir: Path, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """The resolved Config that a run wrote to its workdir, with overrides.

    Raises:
        ConfigError: no such run, or what `override` and `from_config_dict` raise.
    """
    path = workdir / "config.json"
    if not path.is_file():
        arms = sorted(str(p.parent) for p in workdir.glob("*/config.json"))
        inside = f"; it holds the runs {', '.join(arms)}" if arms else ""
        raise ConfigError(f"--workdir={workdir}: no run in it (no config.json){inside}")
    try:
        values = ConfigDict(names.current_names(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as e:
        raise ConfigError(f"{path}: cannot be read as a run's config: {e}") from e
    values = to_config_dict(from_config_dict(values))
    override(values, overrides)
    return from_config_dict(values)
