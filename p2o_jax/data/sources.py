"""Loads questions from files, folders and data sets.

    questions.jsonl            a file of JSON lines; also .json (a list of objects), .csv, .parquet
    DIR, DIR@SPLIT             a folder: saved by `datasets` (save_to_disk), of TensorFlow Datasets,
                               or holding such files
    hf:NAME[:SUBSET][@SPLIT]   a data set of the Hugging Face hub, or a folder
    tfds:NAME[@SPLIT]          a data set of TensorFlow Datasets (array_record files, read without
                               TensorFlow), or its folder
    reasoning_gym:TASK,TASK[?size=N&seed=N&NAME=VALUE]
                               procedural tasks of the reasoning-gym library

SPLIT is required if there is more than one split. All problems of a source are reported together.
Every process reads the whole source, because all processes need the same questions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from p2o_jax import config
from p2o_jax.data import folder, reasoning_gym_tasks, tables
from p2o_jax.data.layouts import MissingColumn
from p2o_jax.data.reader import Reader
from p2o_jax.data.tables import Record, Row
from p2o_jax.rewards import reasoning_gym
from p2o_jax.runtime.listing import shortened
from p2o_jax.types import Question

MAX_PROBLEMS_SHOWN = 20

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
    reading: tuple[str, ...] = ()  # notices of layouts and converted answers

    @property
    def notices(self) -> list[str]:
        """Lines to show to the user about how the source was read."""
        conflicts = (
            f", {self.num_conflicts} of them with another answer than the one kept"
            if self.num_conflicts
            else ""
        )
        duplicates = f"{self.path}: {self.num_duplicates} duplicate questions dropped{conflicts}"
        return [*self.reading, *([duplicates] if self.num_duplicates else [])]


def load(
    path: str | Path,
    cfg: config.DataConfig,
    convert: Convert = lambda record: record,
    hint_field: str = "",
) -> Loaded:
    """Loads the questions of a source, in order.

    A question that is a string is put into `cfg.prompt_template`; a list of messages is used
    unchanged. Columns other than the question and the answer go to `Question.meta`. `convert` is
    applied to every record first. `hint_field` is the column of `Question.hint`.

    Raises:
        config.ConfigError: one line per problem, as `FILE:LINE: rule`. LINE counts from 1: lines of
            JSONL and CSV files, records of other sources.
    """
    rows = read(path, cfg, convert, hint_field)
    by_id: dict[str, tuple[int, Question]] = {}
    num_conflicts = 0
    for line, question in zip(rows.lines, rows.questions, strict=True):
        kept = by_id.setdefault(question.id, (line, question))[1]
        num_conflicts += kept.answer != question.answer
    lines, questions = zip(*by_id.values(), strict=True)
    num_duplicates = len(rows.questions) - len(by_id)
    return Loaded(str(path), questions, num_duplicates, lines, num_conflicts, reading=rows.notices)


class ReadRows(NamedTuple):
    """The questions of a source, duplicates included."""

    lines: tuple[int, ...]  # of each question
    questions: tuple[Question, ...]
    notices: tuple[str, ...]


def read(
    path: str | Path,
    cfg: config.DataConfig,
    convert: Convert = lambda record: record,
    hint_field: str = "",
) -> ReadRows:
    """The line and the question of every record, duplicates included; see `load`."""
    problems: dict[str, int] = {}  # and how many further records have the same
    missing: dict[MissingColumn, str] = {}
    rows: list[tuple[int, Question]] = []
    reader = _reader(str(path), cfg, hint_field)
    for line, record in records(path, cfg.tfds_dir):
        converted = record if isinstance(record, str) else convert(record)
        result = converted if isinstance(converted, str) else reader.question(converted)
        if isinstance(result, Question):
            rows.append((line, result))
            continue
        problem = f"{path}:{line}: {result}" if line else f"{path}: {result}"
        if isinstance(result, MissingColumn):
            problem = missing.setdefault(result, problem)
        problems[problem] = problems.get(problem, -1) + 1
    if not rows and not problems:
        problems[f"{path}: no questions in it"] = 0
    raise_problems(
        [f"{line}; {more:,} more like it" if more else line for line, more in problems.items()]
    )
    lines, questions = zip(*rows, strict=True)
    return ReadRows(lines, questions, tuple(reader.notices(str(path))))


def _reader(path: str, cfg: config.DataConfig, hint_field: str) -> Reader:
    if path.partition(":")[0] != reasoning_gym.NAME:
        return Reader(path if _is_remote(path) else Path(path).name, cfg, hint_field=hint_field)
    cfg = replace(cfg, question_field="question", answer_field="answer")
    return Reader(path, cfg, reasoning_gym.NAME, hint_field)


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
    if kind == reasoning_gym.NAME:
        yield from reasoning_gym_tasks.read(rest)
    elif _is_remote(text):
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
    """Whether the source is of the hub or of TensorFlow Datasets."""
    return text.partition(":")[0] in _REMOTE


def _split_of(text: str) -> tuple[str, str]:
    name, _, split = text.rpartition("@")
    return (name, split) if name else (split, "")


def _read_hub(name: str, split: str, _: str) -> Iterator[Row]:
    name, _, subset = name.partition(":")
    return folder.read_hub(name, subset, split)


_REMOTE = {"hf": _read_hub, "tfds": folder.read_tfds}
