"""Grades the responses in a file with both graders."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from p2o_jax.config import Config, ConfigError, loading, resolve
from p2o_jax.config.reward_terms import compares_answers
from p2o_jax.data import answers, tables
from p2o_jax.data.sources import raise_problems
from p2o_jax.rewards.lenient import LenientGrader
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.runtime import files, listing
from p2o_jax.runtime.console import Reporter
from p2o_jax.types import Question

ADDED = ("strict", "lenient", "extracted", "status")
AT_ONCE = 2000  # responses in memory
MAX_LINES_SHOWN = 10


class GradeOptions(NamedTuple):
    """Which responses are graded, and where the grades are written."""

    responses: Path
    out: Path
    overrides: Sequence[tuple[str, str]] = ()  # of settings: (key, text)


class ResponseRow(NamedTuple):
    """A line of the file."""

    line: int  # from 1
    fields: tables.Record
    answer: str  # the text of the reference; empty if there is none
    is_final: bool  # the reference is the final answer of the solution that is given


class Tally:
    """What was graded so far, for the summary."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.disagreements: list[str] = []

    def add(self, row: ResponseRow, grades: dict[str, Any], lenient: str) -> None:
        """Counts a row; `lenient` is the status of the lenient grader."""
        disagree = (grades["status"] == "correct") != (lenient == "correct")
        self.counts.update(
            {
                "responses": 1,
                f"strict {grades['status']}": 1,
                f"lenient {lenient}": 1,
                "final": row.is_final,
                "replaced": bool(set(ADDED) & row.fields.keys()),
            }
        )
        if disagree:
            self.disagreements.append(f"{row.line}")

    def lines(self, source: Path) -> list[str]:
        """The summary."""
        count, total = self.counts, self.counts["responses"]
        lines = [
            f"{name}: {count[f'{name} correct']:,} of {total:,} right"
            f" ({count[f'{name} correct'] / total:.1%}), {count[f'{name} no_answer']:,} without an"
            f" answer, {count[f'{name} time_out']:,} timed out, {count[f'{name} error']:,} failed"
            for name in ("strict", "lenient")
        ]
        if self.disagreements:
            shown = listing.shortened(self.disagreements, MAX_LINES_SHOWN)
            lines.append(
                f"the graders disagree on {len(self.disagreements):,} of {total:,}; lines of"
                f" {source}: {', '.join(shown)}"
            )
        if count["final"]:
            lines.append(
                f"{count['final']:,} answers are solutions: their final answers are the references"
            )
        if count["replaced"]:
            lines.append(
                f"{count['replaced']:,} lines had one of the fields {', '.join(ADDED)}: replaced"
            )
        return lines


def grade(options: GradeOptions) -> None:
    """Grades every response of a file. The output appears when all of it is written.

    Raises:
        ConfigError: with a line for everything that is wrong with the files or the config.
    """
    cfg = _config(options.overrides)
    raise_problems(_out_problems(options.out))
    total = _check(options.responses, cfg)
    reporter, tally = Reporter(), Tally()
    with Scorer(cfg.reward) as strict, LenientGrader(cfg.reward) as lenient:
        raise_problems(strict.problems())
        rows = (row for row in _rows(options.responses, cfg) if isinstance(row, ResponseRow))
        try:
            with (
                files.replacing(options.out) as file,
                reporter.phase("grade", total, "responses") as advance,
            ):
                while batch := list(itertools.islice(rows, AT_ONCE)):
                    for row in _graded(batch, strict, lenient, tally):
                        file.write(json.dumps(row).encode() + b"\n")
                    advance(len(batch))
                raise_problems(_out_problems(options.out))  # another command may have written it
        except OSError as e:
            raise ConfigError(f"--out={options.out}: {e.strerror}") from e
    for line in [*tally.lines(options.responses), str(options.out)]:
        reporter.line(line)


def _config(overrides: Sequence[tuple[str, str]]) -> Config:
    values = loading.to_config_dict(Config())
    loading.override(values, overrides)
    return resolve(loading.from_config_dict(values))


def _out_problems(out: Path) -> list[str]:
    """A line if the output file cannot be there."""
    if not out.parent.is_dir():
        return [f"--out={out}: no such directory: {out.parent}"]
    return files.conflicts("--out", out)


def _check(path: Path, cfg: Config) -> int:
    """The number of rows; all of them are as they must be.

    Raises:
        ConfigError: with a line per problem, `FILE:LINE: rule`.
    """
    problems, total = [], 0
    try:
        for row in _rows(path, cfg):
            if isinstance(row, str):
                problems.append(row)
            total += 1
    except OSError as e:
        raise ConfigError(f"--responses={path}: {e.strerror}") from e
    raise_problems(problems or ([] if total else [f"{path}: no responses in this file"]))
    return total


def _rows(path: Path, cfg: Config) -> Iterator[ResponseRow | str]:
    """The rows of the file, and a line for each that is wrong."""
    for line, record in tables.read_jsonl(path):
        row = record if isinstance(record, str) else _row(line, record, cfg)
        yield f"{path}:{line}: {row}" if isinstance(row, str) else row


def _row(line: int, record: tables.Record, cfg: Config) -> ResponseRow | str:
    """The row, or what is wrong with it."""
    response, answer = record.get("response"), record.get("answer")
    if not isinstance(response, str):
        what = tables.kind(response) if "response" in record else "none"
        return f"response: expected a text, got {what}"
    if answer is None and not compares_answers(cfg.reward.fn):
        return ResponseRow(line, record, "", False)
    try:
        text, where = answers.as_reference(answer, cfg.data.answers)
    except ValueError as e:
        return f"answer: {e}"
    return ResponseRow(line, record, text, bool(where))


def _graded(
    batch: Sequence[ResponseRow], strict: Scorer, lenient: LenientGrader, tally: Tally
) -> Iterator[dict[str, Any]]:
    """The rows with their grades."""
    responses = [row.fields["response"] for row in batch]
    questions = [Question(str(row.line), (), row.answer, meta=dict(row.fields)) for row in batch]
    verdicts = strict.judge(responses, questions)
    grades = lenient.grade(responses, [row.answer for row in batch])
    for row, verdict, other in zip(batch, verdicts, grades, strict=True):
        added = {
            "strict": verdict.answer_score,
            "lenient": float(other.status == "correct"),
            "extracted": other.answer or None,
            "status": verdict.status,
        }
        tally.add(row, added, other.status)
        yield {**row.fields, **added}
