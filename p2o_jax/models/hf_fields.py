"""Typed access to the values of config.json, which records all problems."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


class Fields:
    """Typed values of config.json. A missing or mistyped value is recorded as a problem and read as
    1.

    Args:
        values: the values of the file.
        within: place of the values in the file, to name them in problems.
        problems: list to which problems are added.
        defaults: values of keys that are absent.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        within: str = "",
        problems: list[str] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        self.values, self.within, self.defaults = values, within, defaults or {}
        self.problems: list[str] = [] if problems is None else problems

    def integer(self, key: str, default: int | None = None) -> int:
        """Returns a whole number of at least 1, or the default if the key is absent or null."""
        value = self._get(key, default)
        if value is not default and (type(value) is not int or value < 1):
            self._expected(key, value, "a positive whole number")
            return 1
        return 1 if value is None else value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a positive number, or the default if the key is absent or null."""
        value = self._get(key, default)
        if value is not default and (type(value) not in (int, float) or not 0 < value < math.inf):
            self._expected(key, value, "a positive number")
            return 1.0
        return 1.0 if value is None else float(value)

    def flag(self, key: str) -> bool:
        """Returns a truth value; null and absent are false."""
        value = self.values.get(key)
        value = self.defaults.get(key) if value is None else value
        if not isinstance(value, bool | None):
            self.problems.append(f"{self.within}{key}={value!r}: expected true or false")
        return value is True

    def off_or(self, read: Any, key: str) -> Any:
        """Returns 0 if the key is null, or absent without a default; else what `read(key)` returns,
        a method of this class.
        """
        value = self.values[key] if key in self.values else self.defaults.get(key)
        return 0 if value is None else read(key)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """Returns a list of this many positive numbers."""
        value = self._get(key, None)
        if value is None:
            return (1.0,) * count
        good = isinstance(value, list) and all(
            type(x) in (int, float) and 0 < x < math.inf for x in value
        )
        if not good or len(value) != count:
            length = f", not {len(value)}" if good else ""
            self._expected(key, value, f"a list of {count} positive numbers{length}")
            return (1.0,) * count
        return tuple(map(float, value))

    def choice(self, key: str, choices: Mapping[str, Any], default: str) -> Any:
        """Returns what the key's value, or the default, stands for."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            self.problems.append(
                f"{self.within}{key}={value!r} is not supported; supported: {', '.join(choices)}"
            )
            return choices[default]
        return choices[value]

    def of_layers(self, key: str, default: Sequence[Any], choices: Sequence[Any]) -> list[Any]:
        """Returns a list with one of the choices for each layer. Absent, null and empty give the
        default.
        """
        value = self.values.get(key) or default
        if not isinstance(value, list | tuple) or len(value) != len(default):
            self._expected(key, value, f"a list with a value for each of {len(default)} layers")
            return list(default)
        if others := [x for x in value if x not in choices]:
            self.problems.append(
                f"{self.within}{key} with {others[0]!r} is not supported; supported:"
                f" {', '.join(map(str, choices))}"
            )
            return list(default)
        return list(value)

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = self.defaults.get(key)
        if value is not None:
            return value
        if default is None:
            self.problems.append(f"{self.within}{key} is missing")
        return default

    def _expected(self, key: str, value: Any, rule: str) -> None:
        self.problems.append(f"{self.within}{key}={_short(value)}: expected {rule}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
