"""Examples of custom reward functions.

Use one with `--config.reward.fn=p2o_jax.rewards.examples:pattern` or `...:json_fields`, or beside
others, as in `--config.reward.fn=correct,p2o_jax.rewards.examples:brevity=0.1`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

FREE_WORDS = 200


def pattern(
    messages: Sequence[Mapping[str, str]], response: str, answer: str, meta: Mapping[str, Any]
) -> tuple[float, str]:
    """Scores 1 if the regular expression `answer` matches the whole last non-blank line, else 0."""
    lines = [line.strip() for line in response.splitlines() if line.strip()]
    if lines and re.fullmatch(answer, lines[-1]):
        return 1.0, "The last line has the required form."
    last_line = lines[-1][:200] if lines else "missing"
    return 0.0, f"The last line must match the regular expression {answer}; it is: {last_line}"


def json_fields(
    messages: Sequence[Mapping[str, str]], response: str, answer: str, meta: Mapping[str, Any]
) -> tuple[float, str]:
    """Scores the fraction of the fields of the JSON object `answer` that the response gets right.

    The response's fields are those of its last JSON object.
    """
    expected = json.loads(answer)
    given = _last_object(response)
    if given is None:
        return 0.0, "The response holds no JSON object."
    wrong = [name for name, value in expected.items() if name not in given or given[name] != value]
    share = 1 - len(wrong) / len(expected)
    return (
        share,
        f"Wrong or missing fields: {', '.join(wrong)}." if wrong else "All fields are right.",
    )


def brevity(
    messages: Sequence[Mapping[str, str]], response: str, answer: str, meta: Mapping[str, Any]
) -> float:
    """Scores 1 for up to FREE_WORDS words, then FREE_WORDS / words."""
    return min(FREE_WORDS / max(len(response.split()), 1), 1.0)


def _last_object(text: str) -> dict[str, Any] | None:
    """The last JSON object that is not inside another one."""
    decoder, last, position = json.JSONDecoder(), None, text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            last = value if isinstance(value, dict) else last
        position = text.find("{", end)
    return last
