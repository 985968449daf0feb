"""Config files and flags: Python files with a `get_config()` that returns a ConfigDict, and
`--config.a.b=value` overrides.

ConfigDict keys are locked, so that a misspelt one fails where it is written; `from_config_dict`
checks every type.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import math
import os
import traceback
import types
import typing
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict, config_dict

from p2o_jax.config import Config, ConfigError
from p2o_jax.config.ranges import Range

RENAMED = {"rollout.bank_tokens": "rollout.prompt_cache_tokens"}  # settings of earlier versions


def current_names(values: dict[str, Any]) -> dict[str, Any]:
    """A config.json of any version, with the settings under their current names."""
    values = {
        key: dict(value) if isinstance(value, dict) else value for key, value in values.items()
    }
    for old, new in RENAMED.items():
        (section, old_name), (new_section, new_name) = old.split("."), new.split(".")
        if isinstance(values.get(section), dict) and old_name in values[section]:
            values.setdefault(new_section, {})[new_name] = values[section].pop(old_name)
    return values


def to_config_dict(config: Any) -> ConfigDict:
    """The dataclass as a ConfigDict with locked keys; `X | None` fields become typed placeholders."""
    values = ConfigDict()
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif hints[f.name] is float:
            value = float(value)  # a ConfigDict holds a field to the type of its first value
        elif value is None:
            value = config_dict.placeholder(_runtime_type(hints[f.name]))
        values[f.name] = value
    return values.lock()


def from_config_dict(values: ConfigDict) -> Config:
    """The typed Config.

    Raises:
        ConfigError: with a line for every unknown key and every value of the wrong type.
    """
    problems: list[str] = []
    config = _build(Config, values, "config", problems)
    if problems:
        raise ConfigError(*problems)
    return config


def override(values: ConfigDict, assignments: typing.Sequence[tuple[str, str]]) -> None:
    """Sets `a.b = text` for every pair, each text parsed as the field's type.

    Raises:
        ConfigError: with a line for every unknown key and every text that is not of the field's
            type.
    """
    problems = []
    for key, text in assignments:
        try:
            node: Any = values
            hints: dict[str, Any] = typing.get_type_hints(Config)
            *sections, name = key.split(".")
            for section in sections:
                node, hints = node[section], typing.get_type_hints(hints[section])
            if name not in hints or dataclasses.is_dataclass(hints[name]):
                raise KeyError(name)
        except (KeyError, TypeError):
            problems.append(f"config.{key}: no such key{_did_you_mean(key)}")
            continue
        try:
            node[name] = _parse(text, hints[name])
        except (ValueError, TypeError):
            problems.append(f"config.{key}={text}: expected {_describe(hints[name])}")
    if problems:
        raise ConfigError(*problems)


def _build(cls: type, values: Any, where: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    kwargs = {}
    for key in values:
        if key not in hints:
            problems.append(
                f"{where}.{key}: no such"
                f" key{_did_you_mean(f'{where}.{key}'.removeprefix('config.'))}"
            )
    for name, hint in hints.items():
        if name not in values:
            continue
        value = values[name]
        if dataclasses.is_dataclass(hint):
            kwargs[name] = _build(typing.cast(type, hint), value, f"{where}.{name}", problems)
            continue
        try:
            kwargs[name] = _check(value, hint)
        except ValueError:
            problems.append(f"{where}.{name}={value!r}: expected {_describe(hint)}")
    return cls(**kwargs)


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone."""
    return (
        typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
    )


def _check(value: Any, hint: Any) -> Any:
    """The value as the hint's type. Raises ValueError where it is not of it (an int passes as a
    float, a list as a tuple).
    """
    for option in _options(hint):
        if option is type(None) and value is None:
            return None
        if typing.get_origin(option) is Literal and value in typing.get_args(option):
            return value
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            return tuple(_check(v, typing.get_args(option)[0]) for v in value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:  # an integer of hundreds of digits
                return math.inf  # which no setting may be
        if option in (int, bool, str) and type(value) is option:
            return value
    raise ValueError(value)


def _parse(text: str, hint: Any) -> Any:
    for option in _options(hint):
        if option is str or typing.get_origin(option) is Literal:
            return _check(text, option)
        if option is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
    try:
        value = None if text.lower() == "none" else ast.literal_eval(text)
    except (SyntaxError, ValueError) as e:
        raise ValueError(text) from e
    if typing.get_origin(hint) is tuple and not isinstance(value, list | tuple):
        value = (value,)
    return _check(value, hint)


def _runtime_type(hint: Any) -> type:
    option = next(o for o in _options(hint) if o is not type(None))
    return str if typing.get_origin(option) is Literal else option


def _describe(hint: Any) -> str:
    names = []
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            names.append("one of " + ", ".join(map(str, typing.get_args(option))))
        else:
            names.append(
                "none" if option is type(None) else str(getattr(option, "__name__", option))
            )
    return " or ".join(names)


def _did_you_mean(key: str) -> str:
    if key in RENAMED:
        return f" (it is now config.{RENAMED[key]})"
    keys = []
    for section, hint in typing.get_type_hints(Config).items():
        keys += (
            [f"{section}.{f.name}" for f in dataclasses.fields(hint)]
            if dataclasses.is_dataclass(hint)
            else [section]
        )
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    return f" (did you mean config.{close[0]}?)" if close else ""


def load(path: str, overrides: typing.Sequence[tuple[str, str]] = ()) -> Config:
    """The Config of a config file with overrides.

    Raises:
        ConfigError: no such file, an error in it, or what `override` and `from_config_dict` raise.
    """
    return from_config_dict(load_config_dict(path, overrides))


def load_config_dict(path: str, overrides: typing.Sequence[tuple[str, str]] = ()) -> ConfigDict:
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
    except Exception as e:  # whatever a user's file raises, it is told in one line
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


def parse_flags(
    argv: typing.Sequence[str],
    known: typing.Mapping[str, str | None],
    switches: typing.Collection[str] = (),
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """({flag: value} of the known flags, [(config key, value)] of the overrides) of a command line.

    Args:
        known: the command's flags with their defaults; None: required.
        switches: flags of the command without a value; "yes" where given, else "".

    Raises:
        ConfigError: with a line for every flag that is unknown, missing or without a value.
    """
    flags: dict[str, str] = {}
    overrides: list[tuple[str, str]] = []
    problems: list[str] = []
    rest = list(argv)
    while rest:
        flag, has_value, value = rest.pop(0).partition("=")
        name = flag.removeprefix("--")
        if not flag.startswith("--") or (
            name not in (*known, *switches) and not name.startswith("config.")
        ):
            problems.append(f"{flag}: unknown flag{_close(name, [*known, *switches])}")
            continue
        if name in switches:
            flags[name] = "yes"
            if has_value:
                problems.append(f"{flag}={value}: takes no value")
            continue
        if not has_value:
            if not rest or rest[0].startswith("--"):
                problems.append(f"{flag}: needs a value")
                continue
            value = rest.pop(0)
        if name.startswith("config."):
            overrides.append((name.removeprefix("config."), value))
        else:
            flags[name] = value
    for name, default in {**known, **dict.fromkeys(switches, "")}.items():
        if name not in flags and default is None:
            problems.append(f"--{name}: required")
        flags.setdefault(name, default or "")
    if problems:
        raise ConfigError(*problems)
    return flags, overrides


def numbers(
    flags: typing.Mapping[str, str], wanted: typing.Mapping[str, tuple[type, Range]]
) -> dict[str, Any]:
    """The wanted flags' values as numbers of the given type (int or float), each in its range.

    Raises:
        ConfigError: with a line for every flag that gives none.
    """
    values, problems = {}, []
    for name, (kind, within) in wanted.items():
        try:
            values[name] = kind(flags[name])
            problem = within.problem(values[name])
        except ValueError:
            problem = f"must be {'an integer' if kind is int else 'a number'}, {within}"
        problems += [f"--{name}={flags[name]} {problem}"] if problem else []
    if problems:
        raise ConfigError(*problems)
    return values


def _close(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean --{close[0]}?)" if close else ""


# other keys of a comparison's result.json
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
    found: dict[str, Config] = {}
    problems: list[str] = []
    names = [arm.split()[0] if arm.split() else "" for arm in values.arms]  # type: ignore[union-attr]  # a tuple of texts
    if len(set(names)) < len(names) or not all(_is_arm_name(name) for name in names):
        rule = (
            "every arm needs a name of its own, of letters, digits and _; not"
            f" {', '.join(RESERVED)}"
        )
        raise ConfigError(f"config.arms={values.arms}: {rule}")
    for arm in typing.cast(tuple[str, ...], values.arms):
        name, *settings = arm.split()
        own = values.copy_and_resolve_references().lock()
        try:
            override(own, [(key, value) for key, _, value in (s.partition("=") for s in settings)])
            own.arms = ()
            found[name] = from_config_dict(own)
        except ConfigError as e:
            problems += [f"config.arms, {name}: {line}" for line in e.problems]
    if problems:
        raise ConfigError(*problems)
    return found


def read_config(workdir: Path, overrides: typing.Sequence[tuple[str, str]] = ()) -> Config:
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
        values = ConfigDict(current_names(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as e:
        raise ConfigError(f"{path}: cannot be read as a run's config: {e}") from e
    values = to_config_dict(from_config_dict(values))
    override(values, overrides)
    return from_config_dict(values)
