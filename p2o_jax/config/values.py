"""Values of settings: parsing of texts, and validation of types by pydantic."""

import ast
import contextlib
import functools
import math
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter

from p2o_jax.config.setting import options

BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}


def parse(text: str, hint: Any) -> Any:
    """The value that a text stands for in a setting of this type; the text itself if it stands
    for none, which `validated` then rejects.

    "1e6" is an int, too; "yes" and "no" are bools; "q,k" and "(q, k)" are lists.
    """
    members, word = options(hint), text.strip().lower()
    if type(None) in members and word == "none":
        return None
    if bool in members:
        return BOOLEANS.get(word, text)
    for member in members:
        if get_origin(member) is tuple:
            return _items(text, get_args(member)[0])
        if member in (int, float):
            return _number(text, member)
    return text


def validated(value: Any, hint: Any) -> Any:
    """The value as the type: an int passes as a float, a list as a tuple; nothing else is
    converted.

    Raises:
        ValueError: it is not of the type.
    """
    if isinstance(value, list):
        value = tuple(value)
    return _adapter(hint).validate_python(value, strict=True)


@functools.cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return text


def _number(text: str, kind: type) -> Any:
    value = _literal(text)
    if kind is int and type(value) is float and "e" in text.lower() and value.is_integer():
        return int(value)
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:  # an integer of hundreds of digits
            return math.inf  # which no setting may be
    return value


def _items(text: str, element: Any) -> tuple[Any, ...]:
    literal = _literal(text)
    if literal is not text:
        values = tuple(literal) if isinstance(literal, list | tuple) else (literal,)
        with contextlib.suppress(ValueError):
            return validated(values, tuple[element, ...])
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    parts = (part.strip().strip("'\"") for part in inner.split(","))
    return tuple(parse(part, element) for part in parts if part)
