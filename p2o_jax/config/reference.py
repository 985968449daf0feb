"""The settings as text: `--help-config`, and the words that docs/generate.py shares with it."""

import difflib
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, Literal

from p2o_jax.config.errors import ConfigError
from p2o_jax.config.schema import PRESETS, Config
from p2o_jax.config.setting import Setting, options, sections, settings

TOP = "config"  # stands for the settings outside of any section
_WIDTH = 100


def choices(hint: Any) -> tuple[str, ...]:
    """The values that a setting of this type may have, if they are a fixed list."""
    for option in options(hint):
        if typing.get_origin(option) is Literal:
            return typing.get_args(option)
    return ()


def type_name(hint: Any) -> str:
    """The type of a setting that has no fixed list of values: "int", "list of str"."""
    if typing.get_origin(hint) is tuple:
        return f"list of {typing.get_args(hint)[0].__name__}"
    return next(option for option in options(hint) if option is not type(None)).__name__


def defaults(setting: Setting) -> dict[str, Any]:
    """The default of a setting by preset, where the preset decides; else under an empty name."""
    if setting.default is None:
        return {name: values[setting.key] for name, values in PRESETS.items()}
    return {"": setting.default}


def bounds(setting: Setting) -> str:
    """The range of a setting: "at least 1", "[0, 1]"; empty if it has none."""
    return str(setting.within).removeprefix("in ") if setting.within else ""


def by_section() -> dict[str, list[Setting]]:
    """The settings of each section, those outside of sections under TOP."""
    groups: dict[str, list[Setting]] = {TOP: []} | {name: [] for name in sections(Config)}
    for setting in settings(Config).values():
        name, dot, _ = setting.key.partition(".")
        groups[name if dot else TOP].append(setting)
    return groups


def summary(section: str) -> str:
    """What a section is about: the docstring of its class."""
    cls = Config if section == TOP else sections(Config)[section]
    return " ".join((cls.__doc__ or "").split())


def help_text(section: str = "") -> str:
    """The text of `--help-config [SECTION]`; without a section, of all of them.

    Raises:
        ConfigError: there is no such section.
    """
    groups = by_section()
    if section and section not in groups:
        close = difflib.get_close_matches(section, groups, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        names = ", ".join(groups)
        raise ConfigError(f"--help-config={section}: no such section{meant}; there are {names}")
    lines = [
        "Settings are given as --config.section.key=value, or in a config file.",
        "[resumable]: may change when a run is resumed.",
    ]
    for name, group in groups.items():
        if section in ("", name):
            lines += ["", *textwrap.wrap(f"{name}: {summary(name)}", _WIDTH), ""]
            for setting in group:
                lines += _lines(setting)
    return "\n".join(lines)


def _lines(setting: Setting) -> Iterator[str]:
    kind = "|".join(choices(setting.hint)) or type_name(setting.hint)
    default = ", ".join(
        f"{name}: {_shown(value)}" if name else _shown(value)
        for name, value in defaults(setting).items()
    )
    notes = [kind, f"default: {default}", bounds(setting)]
    resumable = " [resumable]" if setting.resumable else ""
    yield f"  --config.{setting.key}{resumable}"
    for text in ("; ".join(filter(None, notes)), setting.doc):
        yield from textwrap.wrap(
            text,
            _WIDTH,
            initial_indent=" " * 6,
            subsequent_indent=" " * 6,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "()"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if value == "" or (isinstance(value, str) and "\n" in value) else str(value)
