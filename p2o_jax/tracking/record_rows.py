"""What a row of each record file of a run holds, and reading files whose rows may be damaged, or
anybody's.

Readers of records get rows that keep these rules, and need no care of their own; what breaks one is
named with file and line.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from p2o_jax.config import ConfigError

LARGEST = 1e100  # sums and squares of such numbers are finite
DEEPEST = 50  # levels of a JSON file: Python ends at a thousand
Row = dict[str, Any]
Check = Callable[[Row], str]  # what is wrong with a row; nothing if it is right


class Rule(NamedTuple):
    """What a value must be, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -LARGEST <= value <= LARGEST
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _is_tally(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(_is_integer(v) and v >= 0 for v in value)
    )


def _mapping(rule: Rule) -> Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, dict) and all(map(rule.holds, value.values()))

    return Rule(f"an object whose values are each {rule.expected}", holds)


def _or_null(rule: Rule) -> Rule:
    return Rule(f"{rule.expected} or null", lambda value: value is None or rule.holds(value))


TEXT = Rule("a text", lambda value: isinstance(value, str))
TEXTS = Rule(
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value),
)
BOOL = Rule("true or false", lambda value: isinstance(value, bool))
NUMBER = Rule("a finite number", _is_number)
SHARE = Rule("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
MEASURED = Rule(
    "a number",
    lambda value: _is_number(value) or (isinstance(value, float) and not math.isfinite(value)),
)
INTEGER = Rule("a whole number", _is_integer)
COUNT = Rule("a whole number of 0 or more", lambda value: _is_integer(value) and value >= 0)
TALLY = Rule("a pair of counts", _is_tally)
SET = Rule(
    "an object with an accuracy from 0 to 1",
    lambda value: isinstance(value, dict) and SHARE.holds(value.get("accuracy")),
)


class Schema(NamedTuple):
    """The fields that a row must have, those that it may have, and the rule of all others with a
    slash in their name.
    """

    needed: Mapping[str, Rule]
    optional: Mapping[str, Rule] = {}
    others: Rule | None = None

    def problem(self, row: Row) -> str:
        """What is wrong with the row; nothing if it is right."""
        for name, rule in self.needed.items():
            if name not in row:
                return f"no `{name}`"
            if not rule.holds(row[name]):
                return f"`{name}` is {_shown(row[name])}, expected {rule.expected}"
        for name, value in row.items():
            rule = self.optional.get(name) or (self.others if "/" in name else None)
            if rule and not rule.holds(value):
                return f"`{name[:80]}` is {_shown(value)}, expected {rule.expected}"
        return ""


METRICS = Schema({"step": COUNT}, others=MEASURED)
EVALUATIONS = Schema(
    {"step": COUNT, "accuracy": SHARE, "generated_tokens": NUMBER, "by_family": _mapping(SHARE)},
    {
        "standard_error": _or_null(SHARE),  # null: of a single question
        "questions": COUNT,
        "sets": _mapping(SET),
        "template": TEXT,
    },
)
SAMPLES = Schema(
    {"step": COUNT, "question_id": TEXT, "response": TEXT},
    {
        "question": TEXT,
        "answer": TEXT,
        "template": TEXT,
        "status": TEXT,
        "score": NUMBER,
        "tokens": COUNT,
        "stopped": _or_null(BOOL),
        "by_reward": _mapping(SHARE),
    },
)
CANDIDATE = Schema(
    {
        "epoch": INTEGER,
        "candidate": COUNT,
        "text": TEXT,
        "parent": _or_null(COUNT),
        "dev_score": NUMBER,
        "dev": _mapping(NUMBER),
    }
    | {"cover_rank": _or_null(COUNT)},
    {"template_id": TEXT, "questions": _mapping(TEXT)},
)
PROPOSAL = Schema(
    {"epoch": INTEGER, "outcome": TEXT},
    {"text": _or_null(TEXT), "parent": _or_null(COUNT), "iteration": _or_null(COUNT)}
    | {"before": _or_null(NUMBER), "after": _or_null(NUMBER), "minibatch": TEXTS},
)
QUESTIONS = Schema(
    {
        "epoch": INTEGER,
        "question_id": TEXT,
        "hard": BOOL,
        "plain": TALLY,
        "templated": TALLY,
        "templates": _mapping(TALLY),
    }
    | {f"{name}_epoch": _or_null(INTEGER) for name in ("first_hard", "internalised", "relapsed")},
    {"question": TEXT},
)


def _template_check() -> Check:
    """Parents come before their children, so that there is no circle; the parent itself may be a
    damaged row.
    """

    def check(row: Row) -> str:
        if ("candidate" in row) == ("outcome" in row):
            return "expected either `candidate` or `outcome`"
        if "outcome" in row:
            return PROPOSAL.problem(row)
        problem = CANDIDATE.problem(row)
        if not problem and row["parent"] is not None and row["parent"] >= row["candidate"]:
            problem = f"`parent` is {row['parent']}, expected a candidate before {row['candidate']}"
        return problem or again(row)

    again = _repeated("epoch", "candidate")
    return check


def _question_check() -> Check:
    again = _repeated("epoch", "question_id")
    return lambda row: QUESTIONS.problem(row) or again(row)


def _repeated(*names: str) -> Check:
    seen = set()

    def check(row: Row) -> str:
        key = tuple(row[name] for name in names)
        problem = (
            "a second row of"
            f" {', '.join(f'{n} {_shown(v)}' for n, v in zip(names, key, strict=True))}"
            if key in seen
            else ""
        )
        seen.add(key)
        return problem

    return check


CHECKS: dict[str, Callable[[], Check]] = {  # by the file's name; a check is for one reading of it
    "metrics": lambda: METRICS.problem,
    "evaluations": lambda: EVALUATIONS.problem,
    "templates": _template_check,
    "questions": _question_check,
    "samples": lambda: SAMPLES.problem,
}


def lines(path: Path, notes: list[str] | None = None) -> Iterator[tuple[int, bytes]]:
    """(number, line) of the file's whole lines; a last one without its end is still being
    written, or was torn off by a kill.
    """
    if not path.exists():
        return
    try:
        with open(path, "rb") as f:
            for number, line in enumerate(f, start=1):
                if line.endswith(b"\n"):
                    yield number, line
    except OSError as e:
        if notes is not None:
            notes.append(f"{path.name}: cannot be read: {e.strerror}")


def read(path: Path, notes: list[str]) -> Iterator[Row]:
    """The file's rows; what is none is left out, with a note that says what is wrong in which
    line.
    """
    check = CHECKS[path.stem]()
    for number, line in lines(path, notes):
        row, problem = checked(line, check)
        if problem:
            notes.append(f"{path.name}:{number}: {problem}; left out")
        else:
            yield row


def read_strict(path: Path) -> list[Row]:
    """The rows of a JSONL file, without a last line that a kill has torn off; none if there is no
    such file.

    Raises:
        ConfigError: with a line for every other line that is not JSON, or, in a record file of a
            run, not a row of its kind.
    """
    check = CHECKS.get(path.stem, lambda: lambda row: "")()
    rows, problems = [], []
    for number, line in lines(path):
        row, problem = checked(line, check)
        if problem:
            problems.append(f"{path}:{number}: {problem}: {line.rstrip()[:60]!r}")
        else:
            rows.append(row)
    if problems:
        raise ConfigError(*problems)
    return rows


def checked(line: bytes, check: Check) -> tuple[Row, str]:
    """The row of a line, and what is wrong with it; nothing if it is right."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "not JSON"
    return (row, check(row)) if isinstance(row, dict) else ({}, "not a JSON object")


def read_json(path: Path, notes: list[str]) -> Row:
    """The object in a JSON file; empty where there is no file (yet), or none in it, with a note."""
    values = _json(path, notes)
    if values is not None and not isinstance(values, dict):
        notes.append(f"{path.name}: not a JSON object; left out")
    return values if isinstance(values, dict) else {}


def read_seconds(path: Path, notes: list[str]) -> float | None:
    """The sum of seconds.json; None where there is none."""
    values = _json(path, notes)
    if values is None or (isinstance(values, list) and all(map(_is_number, values))):
        return None if values is None else sum(values)
    notes.append(f"{path.name}: {_shown(values)}, expected a list of numbers; left out")
    return None


def field(
    values: Row, names: Iterable[str], rule: Rule, default: Any, where: str, notes: list[str]
) -> Any:
    """The value at these nested names, or the default where there is none; one that breaks the
    rule is noted.
    """
    value: Any = values
    for name in names:
        value = value.get(name, default) if isinstance(value, dict) else None
        if value is default:
            return default
    if rule.holds(value):
        return value
    notes.append(
        f"{where}: `{'.'.join(names)}` is {_shown(value)}, expected {rule.expected}; taken as"
        f" {default}"
    )
    return default


def _json(path: Path, notes: list[str]) -> Any:
    """What is in a JSON file; None where there is no file, or none that can be read, with a
    note.
    """
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_bytes())
    except OSError as e:
        notes.append(f"{path.name}: cannot be read: {e.strerror}")
    except (ValueError, RecursionError) as e:
        line = f":{e.lineno}" if isinstance(e, json.JSONDecodeError) else ""
        notes.append(f"{path.name}{line}: not JSON; left out")
    else:
        if not _too_deep(values):
            return values
        notes.append(f"{path.name}: more than {DEEPEST} levels; left out")
    return None


def _too_deep(values: Any) -> bool:
    level = [values]
    for _ in range(DEEPEST):
        level = [
            v
            for part in level
            if isinstance(part, dict | list)
            for v in (part.values() if isinstance(part, dict) else part)
        ]
    return bool(level)


def _shown(value: Any) -> str:
    try:
        return _clipped(json.dumps(value))
    except RecursionError:
        return "nested too deep"


def _clipped(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]} …"
