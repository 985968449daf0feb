"""Recipes that turn raw data sets into the paper's training sets.

A recipe names the columns to read, the questions to leave out, and the way sets are drawn.
"""

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2o_jax.config import ConfigError
from p2o_jax.data import answers, benchmarks
from p2o_jax.data.tables import Record
from p2o_jax.rewards import normalize
from p2o_jax.types import digest

YES_NO = "yes_no"
MAX_YES_NO = 0.05  # of a balanced set
MIN_DIFFICULTY = 7
_MATH = [
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
]
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Row:
    """A cleaned question."""

    id: str
    question: str
    answer: str
    answer_type: str
    rest: Mapping[str, Any]

    def record(self, source: str) -> dict[str, Any]:
        """The question as a row of a JSONL file."""
        return {
            "id": self.id,
            "question": self.question,
            "answer": self.answer,
            "answer_type": self.answer_type,
            "source": source,
            **self.rest,
        }


@dataclass(frozen=True)
class Recipe:
    """A training set: its sources, how its records are read, and how its splits are made."""

    name: str
    title: str
    sources: Mapping[str, tuple[str, ...]]  # on the hub, by split
    answer: Callable[[Record], Any]
    kept: tuple[str, ...] = ()  # further columns to write
    skip: Callable[[Record], str] = lambda record: ""  # the reason to leave a record out, or ""
    drawn: bool = False  # draw test and training sets from the only split
    balanced: bool = False  # balance the sets by answer type

    def row(self, record: Record) -> Row | str:
        """The question of a record, or the reason to leave it out."""
        question = next((record[name] for name in benchmarks.QUESTIONS if name in record), None)
        if not isinstance(question, str) or not question.strip():
            return "no question"
        if reason := self.skip(record):
            return reason
        try:
            answer = answers.as_text(self.answer(record))
        except ValueError:
            return "no answer"
        kept = {name: record[name] for name in self.kept if name in record}
        return Row(
            digest(_SPACE.sub(" ", question).strip()), question, answer, answer_type(answer), kept
        )


def _column(record: Record) -> Any:
    return next((record[name] for name in benchmarks.ANSWERS if name in record), None)


def _after_hashes(record: Record) -> Any:
    answer = _column(record)
    return answers.after_hashes(answer) if isinstance(answer, str) else answer


def _boxed(record: Record) -> Any:
    return answers.boxed_answer(str(record.get("solution", "")))


def _easy(record: Record) -> str:
    try:
        difficulty = float(record.get("difficulty", "none"))
    except (TypeError, ValueError):
        return "no difficulty"
    return "" if difficulty >= MIN_DIFFICULTY else f"difficulty under {MIN_DIFFICULTY}"


RECIPES: Mapping[str, Recipe] = {
    r.name: r
    for r in (
        Recipe(
            "deepscaler",
            "DeepScaleR-Preview",
            {"train": ("hf:agentica-org/DeepScaleR-Preview-Dataset@train",)},
            _column,
            drawn=True,
        ),
        Recipe(
            "deepmath",
            f"DeepMath-103K, difficulty {MIN_DIFFICULTY} and more",
            {"train": ("hf:zwhe99/DeepMath-103K@train",)},
            _column,
            kept=("difficulty", "topic"),
            skip=_easy,
            drawn=True,
            balanced=True,
        ),
        Recipe(
            "gsm8k",
            "GSM8K",
            {split: (f"hf:openai/gsm8k:main@{split}",) for split in ("train", "test")},
            _after_hashes,
        ),
        Recipe(
            "math",
            "MATH",
            {
                split: tuple(f"hf:EleutherAI/hendrycks_math:{subject}@{split}" for subject in _MATH)
                for split in ("train", "test")
            },
            _boxed,
            kept=("level", "type"),
        ),
    )
}


def answer_type(answer: str) -> str:
    """The type of an answer.

    One of yes_no, integer, number (a fraction or decimal), choice, list (a tuple, interval, set or
    matrix), expression or text.
    """
    text = normalize.normalize(answer)
    value = normalize.number(text)
    if text.lower() in ("yes", "no", "true", "false"):
        return YES_NO
    if value is not None:
        return "integer" if value.denominator == 1 else "number"
    if re.fullmatch(r"\(?[A-E]\)?", text):
        return "choice"
    if re.fullmatch(r"[\[({\\].*,.*[\])}]|.*(\\cup|matrix|\\\{).*|[^a-z]*,.*", text, re.DOTALL):
        return "list"
    return (
        "text"
        if re.fullmatch(r"[A-Za-z][A-Za-z' -]{2,}", text) or "\\text" in text
        else "expression"
    )


def clean(recipe: Recipe, records: Iterable[Record | str]) -> tuple[list[Row], dict[str, int]]:
    """Reads the recipe's questions and drops duplicates.

    A string in place of a record is a reason to leave it out. Returns the questions, and the number
    of records left out for each reason.
    """
    rows: dict[str, Row] = {}
    left_out: dict[str, int] = {}
    for record in records:
        row = record if isinstance(record, str) else recipe.row(record)
        if isinstance(row, Row) and row.id in rows:
            row = (
                "duplicate"
                if rows[row.id].answer == row.answer
                else "duplicate with another answer"
            )
        if isinstance(row, str):
            left_out[row] = left_out.get(row, 0) + 1
        else:
            rows[row.id] = row
    return list(rows.values()), left_out


def draw(rows: Sequence[Row], sizes: Sequence[int], balanced: bool, seed: str) -> list[list[Row]]:
    """Draws disjoint sets of the given sizes. The order of `rows` does not matter.

    With `balanced`, each set has equally many questions of every answer type, as far as there are
    enough of them, and at most 5 % yes/no questions.

    Raises:
        ConfigError: there are too few rows.
    """
    left = sorted(rows, key=lambda row: row.id)
    random.Random(f"{seed}/draw").shuffle(left)
    sets = []
    for size in sizes:
        quotas = _quotas(left, size) if balanced else None
        chosen: list[Row] = []
        rest: list[Row] = []
        for row in left:
            wanted = len(chosen) < size if quotas is None else quotas[row.answer_type] > 0
            if wanted and quotas is not None:
                quotas[row.answer_type] -= 1
            (chosen if wanted else rest).append(row)
        if len(chosen) < size:
            raise ConfigError(
                f"{len(rows)} questions are left, too few for sets of"
                f" {', '.join(map(str, sizes))}{_but(balanced)}"
            )
        sets.append(chosen)
        left = rest
    return sets


def _but(balanced: bool) -> str:
    return f" with at most {MAX_YES_NO:.0%} yes and no" if balanced else ""


def _quotas(rows: Sequence[Row], size: int) -> dict[str, int]:
    """The number of questions of each answer type in a set: equal until a type is used up."""
    available: dict[str, int] = {}
    for row in rows:
        available[row.answer_type] = available.get(row.answer_type, 0) + 1
    quotas = {YES_NO: min(available.get(YES_NO, 0), int(size * MAX_YES_NO))}
    others = sorted((n, name) for name, n in available.items() if name != YES_NO)
    left = size - quotas[YES_NO]
    for i, (n, name) in enumerate(others):
        quotas[name] = min(n, -(-left // (len(others) - i)))
        left -= quotas[name]
    return quotas
