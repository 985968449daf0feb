"""How settings are declared, as fields of frozen dataclasses: default, description, bounds, and
whether they may change when a run is resumed; and how these declarations are read.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from p2o_jax.config.ranges import INT32_MAX, Range

T = TypeVar("T")


def setting(
    default: T, doc: str, within: Range | None = None, *, resumable: bool = False, **ends: Any
) -> T:
    """A field of a section.

    Args:
        default: its default value; None: the preset decides.
        doc: what it means, with units; a triangle marks a departure from the released code.
        within: the range of a number; alternatively give its `ends`.
        resumable: it may change when a run is resumed.
        ends: ends of the range (`ge`, `gt`, `le`, `lt`, `also`, `why`). Without an upper end it
            reaches to INT32_MAX.
    """
    if within is None and ends:
        within = Range(**ends) if {"le", "lt"} & set(ends) else Range(**ends, le=INT32_MAX)
    metadata = {"doc": doc, "range": within, "resumable": resumable}
    return cast(T, dataclasses.field(default=default, metadata=metadata))


def section(cls: type[T], resumable: bool = False) -> T:
    """A section of the config; `resumable`: all of it may change when a run is resumed."""
    return cast(T, dataclasses.field(default_factory=cls, metadata={"resumable": resumable}))


@dataclass(frozen=True)
class Setting:
    """The declaration of a setting.

    Attributes:
        key: as in `--config.KEY=value`.
        hint: the type of its values.
        owner: the dataclass whose field it is.
    """

    key: str
    hint: Any
    default: Any
    doc: str
    within: Range | None
    resumable: bool
    owner: type


def range_of(field: dataclasses.Field) -> Range | None:
    """The range of a field that `setting` made."""
    return field.metadata.get("range")


@functools.cache
def settings(cls: type) -> dict[str, Setting]:
    """The settings of a config class by key, in their order."""
    return {setting.key: setting for setting in _settings(cls, "", False)}


def sections(cls: type) -> dict[str, type]:
    """The section classes of a config class by name, in their order."""
    hints = typing.get_type_hints(cls).items()
    return {name: cast(type, hint) for name, hint in hints if dataclasses.is_dataclass(hint)}


def may_change(cls: type, key: str) -> bool:
    """Whether a setting, or a former one of a section that may, may change in a run."""
    known = settings(cls).get(key)
    parts = {field.name: field for field in dataclasses.fields(cls)}
    owner = parts.get(key.partition(".")[0])
    if known:
        return known.resumable
    return "." in key and owner is not None and owner.metadata.get("resumable", False)


def options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def describe(hint: Any) -> str:
    """The type in words, for "expected ..."."""
    names = []
    for option in options(hint):
        if typing.get_origin(option) is Literal:
            names.append("one of " + ", ".join(map(str, typing.get_args(option))))
        elif option is type(None):
            names.append("none")
        else:
            names.append(str(getattr(option, "__name__", option)))
    return " or ".join(names)


def _settings(cls: type, prefix: str, resumable: bool) -> Iterator[Setting]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint, data = hints[field.name], field.metadata
        changes = resumable or data.get("resumable", False)
        if dataclasses.is_dataclass(hint):
            yield from _settings(cast(type, hint), f"{prefix}{field.name}.", changes)
        else:
            yield Setting(
                prefix + field.name,
                hint,
                field.default,
                data.get("doc", ""),
                data.get("range"),
                changes,
                cls,
            )
