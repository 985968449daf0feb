"""Prompt templates in a file: one a paragraph, or the `text` of each line of JSONL."""

import re
from pathlib import Path

from p2o_jax.config import ConfigError
from p2o_jax.data import sources, tables


def read(path: Path, flag: str) -> list[str]:
    """The templates of a file in its order, without repeats and without the empty one.

    A file ending in .jsonl has an object with a `text` on each line, such as a run's
    templates.jsonl; any other is text in which blank lines separate templates.

    Args:
        path: the file.
        flag: the flag or setting that names it, for messages.

    Raises:
        ConfigError: with a line per problem.
    """
    try:
        texts = _of_jsonl(path) if path.suffix == ".jsonl" else _of_text(path)
    except OSError as e:
        raise ConfigError(f"{flag}={path}: {e.strerror}") from e
    templates = list(dict.fromkeys(t for t in texts if t))
    if not templates:
        raise ConfigError(f"{flag}={path}: no templates in this file")
    return templates


def _of_text(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8") from e
    return [part.strip() for part in re.split(r"\n[ \t]*\n", text)]


def _of_jsonl(path: Path) -> list[str]:
    texts: list[str] = []
    problems: list[str] = []
    for line, record in tables.read_jsonl(path):
        if isinstance(record, str):
            problems.append(f"{path}:{line}: {record}")
        elif not isinstance(record.get("text"), str):
            problems.append(f'{path}:{line}: expected a JSON object with a text in "text"')
        else:
            texts.append(record["text"].strip())
    sources.raise_problems(problems)
    return texts
