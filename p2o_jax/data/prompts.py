"""Prompts of the `generate` command: a JSONL file of texts or chat messages."""

from pathlib import Path
from typing import NamedTuple

from p2o_jax.config import ConfigError, DataConfig
from p2o_jax.data import answers, reader, sources, tables
from p2o_jax.types import Question, question_id

PLAIN = DataConfig(prompt_template=reader.QUESTION)


class PromptRow(NamedTuple):
    """A prompt and its line in the file, from 1.

    A question without an answer has an empty one, and gets no verdict.
    """

    line: int
    question: Question


def read_prompts(path: Path, cfg: DataConfig = PLAIN) -> list[PromptRow]:
    """The prompts of a JSONL file; those that are texts are put into `cfg.prompt_template`.

    Raises:
        ConfigError: with a line per problem, `FILE:LINE: rule`.
    """
    prompts: list[PromptRow] = []
    problems: list[str] = []
    try:
        for line, record in tables.read_jsonl(path):
            row = record if isinstance(record, str) else _question(record, cfg)
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


def _question(record: tables.Record, cfg: DataConfig) -> Question | str:
    """The question in a row, or what is wrong with it."""
    name = next((name for name in ("prompt", "question") if name in record), None)
    if name is None:
        return 'expected a JSON object with a "prompt" or a "question"'
    try:
        messages = reader.chat_messages(record[name], cfg.prompt_template)
    except ValueError as e:
        return f"{name}: {e}"
    answer = ""
    try:
        if record.get("answer") is not None:
            answer, _ = answers.as_reference(record["answer"], cfg.answers)
    except ValueError as e:
        return f"answer: {e}"
    return Question(question_id(messages), messages, answer)
