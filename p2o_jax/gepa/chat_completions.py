"""The chat-completions format of OpenAI-compatible endpoints: fields of a request, and what the
bodies of replies and errors say. Bodies are untrusted.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from p2o_jax import config
from p2o_jax.types import Reply

Tokens = tuple[int, int]  # of prompt and reply
Fields = Mapping[str, Any]

# Fields that some endpoints refuse, and what takes their place; nothing if they are left out.
_REFUSED = {"max_tokens": "max_completion_tokens", "temperature": ""}
_REFUSAL_CODES = ("unsupported_parameter", "unsupported_value")
_REFUSAL_WORDS = ("unsupported", "not support", "n't support")
_CUT = ("length", "max_tokens")  # finish reasons of replies that ended at the token limit
_SHOWN = 300  # characters of an error message


class ServerError(NamedTuple):
    """What an endpoint says about a request that it refuses; empty texts for what it leaves out."""

    message: str
    param: str = ""
    code: str = ""

    def refuses(self, field: str) -> bool:
        """Whether the endpoint does not take this field, or not the value that it had."""
        text = self.message.lower()
        named = self.param == field if self.param else re.search(rf"\b{field}\b", text)
        unsupported = any(words in text for words in _REFUSAL_WORDS)
        return bool(named) and (unsupported or self.code in _REFUSAL_CODES)


NOTHING_SAID = ServerError("")


class Unreadable(Exception):
    """A body that is no completion, or a completion without text."""

    def __init__(self, has_completion: bool, tokens: Tokens, error: ServerError):
        super().__init__("no_content" if has_completion else "garbage")
        self.has_completion, self.tokens, self.error = has_completion, tokens, error


def fields(api: config.ApiConfig, gepa: config.GepaConfig) -> dict[str, Any]:
    """Returns the fields of a request besides its messages; those that are null in
    `api.extra_body` are left out.
    """
    extra = json.loads(api.extra_body) if api.extra_body else {}
    values = {
        "model": api.model,
        "max_tokens": gepa.reflect_new_tokens,
        "temperature": gepa.reflect_temperature,
        **extra,
    }
    return {name: value for name, value in values.items() if value is not None}


def adapted(sent: Fields, error: ServerError) -> tuple[dict[str, Any], str]:
    """Returns the fields without the one that the endpoint refuses, and a line about the change;
    the line is empty where nothing can be changed.
    """
    for name, instead in _REFUSED.items():
        if name in sent and error.refuses(name):
            kept = {key: value for key, value in sent.items() if key != name}
            if instead:
                return {instead: sent[name], **kept}, f"{name} is sent as {instead}"
            return kept, f"{name}={sent[name]} is left out"
    return dict(sent), ""


def read_completion(body: bytes, most: Tokens) -> tuple[Reply, Tokens]:
    """Returns the reply of a completion, and the tokens that it took: `most` where it does not say.

    The content may be a list of parts. Reasoning, in a field or part of its own, is not part of
    the reply. A reply that was cut may have ended inside a thought, unless the reasoning is
    separate. One without any text may be empty only if it was cut: reasoning took all tokens.

    Raises:
        Unreadable: there is no text.
    """
    try:
        value = json.loads(body)
        choice = value["choices"][0]
        message = choice["message"]
        content, finish = message.get("content"), choice.get("finish_reason")
        parts = content if isinstance(content, list) else [content or ""]
        text = "".join(map(_part_text, parts))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Unreadable(False, most, read_error(body)) from None
    tokens = _usage(value, most)
    cut = finish in _CUT
    if not text.strip() and not cut:
        raise Unreadable(True, tokens, ServerError(_text(message.get("refusal"))))
    separate = any(message.get(name) for name in ("reasoning", "reasoning_content"))
    separate = separate or any(_is_reasoning(part) for part in parts)
    return Reply(text, cut, cut and not separate), tokens


def read_error(body: bytes) -> ServerError:
    """Returns what the body of a refusal says, in any of the usual forms; its first characters
    where it has none.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return ServerError(_text(body.decode("utf-8", "replace")))
    value = value[0] if isinstance(value, list) and value else value
    error = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return ServerError(_text(error))
    message = next((error[name] for name in ("message", "detail") if error.get(name)), "")
    return ServerError(_text(message), _text(error.get("param")), _text(error.get("code")))


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if _is_reasoning(part):
        return ""
    text = part["text"]
    if not isinstance(text, str):
        raise TypeError
    return text


def _is_reasoning(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("thinking", "reasoning")


def _usage(value: Any, most: Tokens) -> Tokens:
    usage = value.get("usage")
    counts = [
        usage.get(name) if isinstance(usage, dict) else None
        for name in ("prompt_tokens", "completion_tokens")
    ]
    prompt, reply = (
        n if type(n) is int and n >= 0 else limit for n, limit in zip(counts, most, strict=True)
    )
    return prompt, reply


def _text(value: Any) -> str:
    """The start of a text, or of a JSON value as text; empty for None."""
    if value is None:
        return ""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        return ""
    return " ".join(text[: 4 * _SHOWN].split())[:_SHOWN]
