"""Reward functions as one's own would be written:
`--config.reward.fn=p2o_jax.rewards.examples:pattern` or `:json_fields`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any


def pattern(
    messages: Sequence[Mapping[str, str]], response: str, answer: str, meta: Mapping[str, Any]
) -> tuple[float, str]:
    """1 if the last line of the response that is not blank matches the regular expression
    `answer` as a whole, else 0.
    """
    lines = [line.strip() for line in response.splitlines() if line.strip()]
    if lines and re.fullmatch(answer, lines[-1]):
        return 1.0, "The last line has the required form."
    return (
        0.0,
        (
            f"The last line must match the regular expression {answer}; it is:"
            f" {lines[-1][:200] if lines else 'missing'}"
        ),
    )


def json_fields(
    messages: Sequence[Mapping[str, str]], response: str, answer: str, meta: Mapping[str, Any]
) -> tuple[float, str]:
    """The share of the fields of the JSON object `answer` that the last JSON object in the
    response has with the same values.
    """
    expected = json.loads(answer)
    found = _last_object(response)
    if found is None:
        return 0.0, "The response holds no JSON object."
    wrong = [name for name, value in expected.items() if name not in found or found[name] != value]
    share = 1 - len(wrong) / len(expected)
    return (
        share,
        f"Wrong or missing fields: {', '.join(wrong)}." if wrong else "All fields are right.",
    )


def _last_object(text: str) -> dict[str, Any] | None:
    """The last JSON object that is not inside another one."""
    decoder, found, position = json.JSONDecoder(), None, text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            found = value if isinstance(value, dict) else found
        position = text.find("{", end)
    return found
