"""JSON from which tuples, and keys that are not strings, are restored."""

from typing import Any

_TUPLE, _MAPPING, _ESCAPED = "!tuple", "!mapping", "!object"


def encode(value: Any) -> Any:
    """The value as JSON from which `decode` restores tuples and keys that are not strings.

    Raises:
        ValueError: it holds a value of a type that JSON does not have.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, tuple):
        return {_TUPLE: [encode(v) for v in value]}
    if not isinstance(value, dict):
        raise ValueError(f"metadata holds a {type(value).__name__}")
    if all(isinstance(key, str) for key in value):
        plain = {key: encode(v) for key, v in value.items()}
        is_tag = len(plain) == 1 and next(iter(plain)).startswith("!")
        return {_ESCAPED: plain} if is_tag else plain
    return {_MAPPING: [[encode(key), encode(v)] for key, v in value.items()]}


def decode(value: Any) -> Any:
    """The value that `encode` got."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value)) if len(value) == 1 else ""
    if tag == _TUPLE:
        return tuple(decode(v) for v in value[tag])
    if tag == _MAPPING:
        return {decode(key): decode(v) for key, v in value[tag]}
    return {key: decode(v) for key, v in (value[tag] if tag == _ESCAPED else value).items()}
