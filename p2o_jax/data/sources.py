"""Loads questions from files, folders and data sets.

    questions.jsonl            a file of JSON lines; also .json (a list of objects), .csv, .parquet
    DIR, DIR@SPLIT             a folder: saved by `datasets` (save_to_disk), of TensorFlow Datasets,
                               or holding such files
    hf:NAME[:SUBSET][@SPLIT]   a data set of the Hugging Face hub, or a folder
    tfds:NAME[@SPLIT]          a data set of TensorFlow Datasets (array_record files, read without
                               TensorFlow), or its folder

SPLIT is required if there is more than one split. All problems of a source are reported together.
Every process reads the whole source, because all processes need the same questions.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2o_jax import config
from p2o_jax.data import folder, tables
from p2o_jax.data.tables import Record, Row
from p2o_jax.runtime.listing import shortened
from p2o_jax.types import Message, Question, question_id

MAX_PROBLEMS_SHOWN = 20
QUESTION = "{question}"  # the placeholder in config.data.prompt_template
ROLES = ("system", "user", "assistant")
_HALF_PAIR = re.compile("[\ud800-\udfff]")

Convert = Callable[[Record], Record | str]  # returns a record with other columns, or a problem


@dataclass(frozen=True)
class Loaded:
    """The questions of a source."""

    path: str
    questions: tuple[Question, ...]
    num_duplicates: int  # dropped records that repeat the messages of an earlier one
    lines: tuple[int, ...]  # the line or record number of each question
    num_conflicts: int = 0  # duplicates whose answer differs from the one kept
    name: str = ""  # the name of an evaluation set

    @property
    def notices(self) -> list[str]:
        """Lines to show to the user about dropped duplicates."""
        conflicts = (
            f", {self.num_conflicts} of them with another answer than the one kept"
            if self.num_conflicts
            else ""
        )
        return (
            [f"{self.path}: {self.num_duplicates} duplicate questions dropped{conflicts}"]
            if self.num_duplicates
            else []
        )


def load(
    path: str | Path, cfg: config.DataConfig, convert: Convert = lambda record: record
) -> Loaded:
    """Loads the questions of a source, in order.

    A question that is a string is put into `cfg.prompt_template`; a list of messages is used
    unchanged. Columns other than the question and the answer go to `Question.meta`. `convert` is
    applied to every record first.

    Raises:
        config.ConfigError: one line per problem, as `FILE:LINE: rule`. LINE counts from 1: lines of
            JSONL and CSV files, records of other sources.
    """
    lines, questions = read(path, cfg, convert)
    by_id: dict[str, tuple[int, Question]] = {}
    num_conflicts = 0
    for line, question in zip(lines, questions, strict=True):
        kept = by_id.setdefault(question.id, (line, question))[1]
        num_conflicts += kept.answer != question.answer
    kept_lines, kept_questions = zip(*by_id.values(), strict=True)
    num_duplicates = len(questions) - len(by_id)
    return Loaded(str(path), kept_questions, num_duplicates, kept_lines, num_conflicts)


def read(
    path: str | Path, cfg: config.DataConfig, convert: Convert = lambda record: record
) -> tuple[tuple[int, ...], tuple[Question, ...]]:
    """The line and the question of every record, duplicates included; see `load`."""
    problems: list[str] = []
    rows: list[tuple[int, Question]] = []
    name = str(path) if _is_remote(str(path)) else Path(path).name
    for line, record in records(path, cfg.tfds_dir):
        converted = record if isinstance(record, str) else convert(record)
        result = converted if isinstance(converted, str) else _question(converted, name, cfg)
        if isinstance(result, Question):
            rows.append((line, result))
        else:
            problems.append(f"{path}:{line}: {result}" if line else f"{path}: {result}")
    if not rows and not problems:
        problems.append(f"{path}: no questions in it")
    raise_problems(problems)
    lines, questions = zip(*rows, strict=True)
    return lines, questions


def shared(train: Loaded, heldout: Sequence[Loaded]) -> list[str]:
    """A line for each held-out set that contains training questions (the same messages)."""
    known = {q.id for q in train.questions}
    counts = [(part.path, sum(q.id in known for q in part.questions)) for part in heldout]
    return [
        f"{path}: {count} of its questions are also training questions"
        for path, count in counts
        if count
    ]


def too_long(loaded: Loaded, count_tokens: Callable[[Question], int], limit: int) -> list[str]:
    """A line for each question whose rendered plain prompt has more than `limit` tokens.

    At most MAX_PROBLEMS_SHOWN lines, and a last one with the number of those not shown.
    """
    problems = []
    for line, question in zip(loaded.lines, loaded.questions, strict=True):
        num_tokens = count_tokens(question)
        if num_tokens > limit:
            problems.append(
                f"{loaded.path}:{line}: a prompt of {num_tokens} tokens;"
                f" config.data.max_prompt_tokens={limit}"
            )
    return shortened(problems, MAX_PROBLEMS_SHOWN, f"{loaded.path}: ", "prompts that are too long")


def raise_problems(problems: Sequence[str]) -> None:
    """Raises a ConfigError with the first MAX_PROBLEMS_SHOWN problems, if there are any."""
    if problems:
        raise config.ConfigError(*shortened(problems, MAX_PROBLEMS_SHOWN))


def records(path: str | Path, tfds_dir: str = "") -> Iterator[Row]:
    """Yields the records of a source, in order, with any columns."""
    text = str(path)
    kind, _, rest = text.partition(":")
    if _is_remote(text):
        name, split = _split_of(rest)
        yield from (
            folder.read(Path(name), split)
            if Path(name).is_dir()
            else _REMOTE[kind](name, split, tfds_dir)
        )
    elif Path(text).is_dir():
        yield from folder.read(Path(text), "")
    elif not Path(text).exists() and "@" in text and Path(_split_of(text)[0]).is_dir():
        yield from folder.read(Path(_split_of(text)[0]), _split_of(text)[1])
    else:
        yield from tables.read(Path(text))


def _is_remote(text: str) -> bool:
    return text.partition(":")[0] in _REMOTE


def _split_of(text: str) -> tuple[str, str]:
    name, _, split = text.rpartition("@")
    return (name, split) if name else (split, "")


def _read_hub(name: str, split: str, _: str) -> Iterator[Row]:
    name, _, subset = name.partition(":")
    return folder.read_hub(name, subset, split)


_REMOTE = {"hf": _read_hub, "tfds": folder.read_tfds}


def fill(prompt_template: str, question: str) -> str:
    """Replaces the placeholder of the template by the question; other braces are kept."""
    before, _, after = prompt_template.partition(QUESTION)
    return before + question + after


def _question(record: Mapping[str, Any], source: str, cfg: config.DataConfig) -> Question | str:
    """The question of a record, or the record's problem."""
    for option, name in (
        ("question_field", cfg.question_field),
        ("answer_field", cfg.answer_field),
    ):
        if name and name not in record:
            return (
                f'no field "{name}" (config.data.{option}); it has'
                f" {', '.join(map(str, record)) or 'none'}"
            )
    messages = _messages(record[cfg.question_field], cfg.prompt_template)
    if isinstance(messages, str):
        return f"{cfg.question_field}: {messages}"
    meta = {str(k): v for k, v in record.items() if k not in (cfg.question_field, cfg.answer_field)}
    if not cfg.answer_field:
        return Question(question_id(messages), messages, "", source, meta)
    answer = record[cfg.answer_field]
    if answer is None or answer != answer:  # tables store missing values as NaN
        return f"{cfg.answer_field}: missing"
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return f"{cfg.answer_field}: expected a text or a number, got {tables.kind(answer)}"
    answer = str(answer).strip()
    if rule := _bad_text(answer):
        return f"{cfg.answer_field}: {rule}"
    return Question(question_id(messages), messages, answer, source, meta)


def _messages(value: Any, prompt_template: str) -> tuple[Message, ...] | str:
    """The chat messages of a question field, or the field's problem."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return _bad_text(value) or ({"role": "user", "content": fill(prompt_template, value)},)
    if not isinstance(value, Sequence):
        return f"expected a text or a list of messages, got {tables.kind(value)}"
    messages = []
    for number, message in enumerate(value, 1):
        if (
            not isinstance(message, Mapping)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            return f'message {number}: expected {{"role": {"|".join(ROLES)}, "content": text}}'
        if rule := _bad_text(message["content"]):
            return f"message {number}: {rule}"
        messages.append({"role": message["role"], "content": message["content"]})
    if not messages or messages[-1]["role"] != "user":
        return "the last message must be the user's"
    return tuple(messages)


def _bad_text(text: str) -> str:
    """The problem with a text, or "". JSON can encode unpaired surrogates, which are invalid."""
    if not text.strip():
        return "empty"
    return "half a surrogate pair: no valid Unicode" if _HALF_PAIR.search(text) else ""
