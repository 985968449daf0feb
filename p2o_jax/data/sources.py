"""Questions from files: JSONL, JSON, CSV and Parquet, by suffix. Everything wrong with a file is reported at once."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2o_jax import config
from p2o_jax.records import Message, Question, question_id

MAX_PROBLEMS_SHOWN = 20
ROLES = ("system", "user", "assistant")
_HALF_PAIR = re.compile("[\ud800-\udfff]")

Row = tuple[int, Mapping[str, Any] | str]  # line and record; a text in place of the record says why there is none


@dataclass(frozen=True)
class Loaded:
    """The questions of a file; `lines` says where each one stands in it."""

    path: str
    questions: tuple[Question, ...]
    num_duplicates: int  # later records with the messages of an earlier one, dropped
    lines: tuple[int, ...]


def load(path: str | Path, cfg: config.Data) -> Loaded:
    """The questions of a file, in its order. LINE in problems is a line of JSONL and CSV files, a record of JSON and Parquet files, from 1.

    Columns other than the question and the answer go to `meta`; `source` is the file's name. `cfg.suffix` is added to questions that are
    texts, not to lists of messages, which are taken as they are.

    Raises:
        config.ConfigError: with a line per problem, `FILE:LINE: rule`.
    """
    path = Path(path)
    problems: list[str] = []
    found: dict[str, tuple[int, Question]] = {}
    num_rows = 0
    for line, record in _rows(path):
        num_rows += 1
        result = record if isinstance(record, str) else _question(record, path.name, cfg)
        if isinstance(result, Question):
            found.setdefault(result.id, (line, result))
        else:
            problems.append(f"{path}:{line}: {result}" if line else f"{path}: {result}")
    if num_rows == 0:
        problems.append(f"{path}: no questions in this file")
    if problems:
        hidden = len(problems) - MAX_PROBLEMS_SHOWN
        raise config.ConfigError(*problems[:MAX_PROBLEMS_SHOWN], *([f"... and {hidden} more"] if hidden > 0 else []))
    lines, questions = zip(*found.values(), strict=True)
    return Loaded(str(path), questions, num_rows - len(questions), lines)


def too_long(loaded: Loaded, count_tokens: Callable[[Question], int], limit: int) -> list[str]:
    """A line for each question whose rendered plain prompt has more than `limit` tokens, MAX_PROBLEMS_SHOWN at most, and their number."""
    found = []
    for line, question in zip(loaded.lines, loaded.questions, strict=True):
        num_tokens = count_tokens(question)
        if num_tokens > limit:
            found.append(f"{loaded.path}:{line}: a prompt of {num_tokens} tokens; config.data.max_prompt_tokens={limit}")
    hidden = len(found) - MAX_PROBLEMS_SHOWN
    return found[:MAX_PROBLEMS_SHOWN] + ([f"{loaded.path}: ... and {hidden} more prompts that are too long"] if hidden > 0 else [])


def _rows(path: Path) -> Iterator[Row]:
    reader = _READERS.get(path.suffix.lower())
    if not path.exists():
        yield 0, "no such file"
    elif path.is_dir():
        yield 0, "is a directory, not a file"
    elif reader is None:
        yield 0, f"suffix must be one of {', '.join(_READERS)}"
    else:
        try:
            yield from reader(path)
        except OSError as e:
            yield 0, f"cannot be read: {e.strerror or e}"


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if raw.strip():
                yield line, _parse_json(raw)


def _read_json(path: Path) -> Iterator[Row]:
    records = _parse_json(path.read_bytes(), list)
    if isinstance(records, str):
        yield 0, records
    else:
        for number, record in enumerate(records, 1):
            yield number, record if isinstance(record, dict) else f"expected a JSON object, got {_kind(record)}"


def _parse_json(raw: bytes, expected: type = dict) -> Any:
    """The JSON value if it is of the expected type, else a text that says what is wrong with it."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except RecursionError:
        return "not JSON: nested too deeply"
    except ValueError as e:
        return f"not JSON: {e}"
    if not isinstance(value, expected):
        return f"expected a JSON {'object' if expected is dict else 'list of objects'}, got {_kind(value)}"
    return value


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for record in reader:
                yield reader.line_num, "more values than columns" if None in record else record
        except csv.Error as e:
            yield reader.reader.line_num, f"not CSV: {e}"
        except UnicodeDecodeError:
            yield reader.reader.line_num + 1, "not UTF-8"


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except pyarrow.ArrowException as e:
        yield number, f"not Parquet: {e}"


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def _question(record: Mapping[str, Any], source: str, cfg: config.Data) -> Question | str:
    """The question in a record, or what is wrong with it."""
    for option, name in (("question_field", cfg.question_field), ("answer_field", cfg.answer_field)):
        if name not in record:
            return f'no field "{name}" (config.data.{option}); it has {", ".join(map(str, record)) or "none"}'
    messages = _messages(record[cfg.question_field], cfg.suffix)
    if isinstance(messages, str):
        return f"{cfg.question_field}: {messages}"
    answer = record[cfg.answer_field]
    if answer is None or answer != answer:  # NaN is how tables say that there is nothing
        return f"{cfg.answer_field}: missing"
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return f"{cfg.answer_field}: expected a text or a number, got {_kind(answer)}"
    answer = str(answer).strip()
    if rule := _bad_text(answer):
        return f"{cfg.answer_field}: {rule}"
    meta = {str(k): v for k, v in record.items() if k not in (cfg.question_field, cfg.answer_field)}
    return Question(question_id(messages), messages, answer, source, meta)


def _messages(value: Any, suffix: str) -> tuple[Message, ...] | str:
    """The chat messages that a question field holds, or what is wrong with it."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return _bad_text(value) or ({"role": "user", "content": value + suffix},)
    if not isinstance(value, Sequence):
        return f"expected a text or a list of messages, got {_kind(value)}"
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            return f'message {number}: expected {{"role": {"|".join(ROLES)}, "content": text}}'
        if rule := _bad_text(message["content"]):
            return f"message {number}: {rule}"
        messages.append({"role": message["role"], "content": message["content"]})
    if not messages or messages[-1]["role"] != "user":
        return "the last message must be the user's"
    return tuple(messages)


def _bad_text(text: str) -> str:
    """What is wrong with a text, empty if nothing is. (JSON can spell halves of a surrogate pair, which are no characters.)"""
    if not text.strip():
        return "empty"
    return "half a surrogate pair: no valid Unicode" if _HALF_PAIR.search(text) else ""


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
