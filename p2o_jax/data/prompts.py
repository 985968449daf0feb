"""Prompts of the `generate` command: a JSONL file of texts or chat messages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from p2o_jax import types
from p2o_jax.config import ConfigError
from p2o_jax.data import sources, tables
from p2o_jax.types import Message, Question


class PromptRow(NamedTuple):
    """A prompt and its line in the file, from 1.

    A question without an answer has an empty one, and gets no verdict.
    """

    line: int
    question: Question


def read_prompts(path: Path, prompt_template: str = sources.QUESTION) -> list[PromptRow]:
    """The prompts of a JSONL file; those that are texts are put into `prompt_template`.

    Raises:
        ConfigError: with a line per problem, `FILE:LINE: rule`.
    """
    prompts: list[PromptRow] = []
    problems: list[str] = []
    try:
        for line, record in tables.read_jsonl(path):
            row = record if isinstance(record, str) else _question(record, prompt_template)
            if isinstance(row, str):
                problems.append(f"{path}:{line}: {row}")
            else:
                prompts.append(PromptRow(line, row))
    except OSError as e:
        raise ConfigError(f"--prompts={path}: {e.strerror}") from e
    if not prompts and not problems:
        problems.append(f"{path}: no prompts in this file")
    sources.raise_problems(problems)
    return prompts


def _question(record: tables.Record, prompt_template: str) -> Question | str:
    """The question in a row, or what is wrong with it."""
    name = next((name for name in ("prompt", "question") if name in record), None)
    if name is None:
        return 'expected a JSON object with a "prompt" or a "question"'
    messages = _messages(record[name], prompt_template)
    if isinstance(messages, str):
        return f"{name}: {messages}"
    answer = record.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        return f"answer: expected a text or a number, got {type(answer).__name__}"
    return Question(
        types.question_id(messages), messages, "" if answer is None else str(answer).strip()
    )


def _messages(value: Any, prompt_template: str) -> tuple[Message, ...] | str:
    """The chat messages in a prompt's field, or what is wrong with it."""
    if isinstance(value, str):
        value = [
            {
                "role": "user",
                "content": sources.fill(prompt_template, value) if value.strip() else "",
            }
        ]
    rule = (
        f'expected a text, or a list of messages {{"role": {"|".join(sources.ROLES)}, "content":'
        " text}, the last the user's"
    )
    if not isinstance(value, list) or not all(isinstance(m, Mapping) for m in value):
        return rule
    if not all(m.get("role") in sources.ROLES and isinstance(m.get("content"), str) for m in value):
        return rule
    if not value or value[-1]["role"] != "user":
        return rule
    if not value[-1]["content"].strip():
        return "empty"
    if not _is_unicode("".join(m["content"] for m in value)):
        return "half a surrogate pair: no valid Unicode"
    return tuple({"role": m["role"], "content": m["content"]} for m in value)


def _is_unicode(text: str) -> bool:
    """JSON can spell halves of surrogate pairs, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
