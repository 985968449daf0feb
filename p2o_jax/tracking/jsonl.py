"""The JSONL files of a run: rows are appended, and on a later start cut back to its checkpoint."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2o_jax.runtime import files

FILES = ("metrics", "samples", "templates", "evaluations", "questions")


def append(path: Path, tick: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends rows to the file, each with its tick."""
    with open(path, "a", encoding="utf-8") as f:
        f.writelines(json.dumps({"tick": tick, **row}, ensure_ascii=True) + "\n" for row in rows)


def cut(path: Path, tick: int, log: Callable[[str], None]) -> set[int]:
    """The ticks that the JSONL file has rows of, after cutting off its rows from `tick` on, and
    what is no row.

    A last line that was torn off by a kill is of the tick that is done again. Any other line that
    is no row is reported, and the file as it was is kept beside it.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = [_row(line, _NEEDS.get(path.name, _no_needs)) for line in lines]
    whole = rows if lines and lines[-1].endswith(b"\n") else rows[:-1]
    bad = [number for number, row in enumerate(whole, start=1) if row is None]
    for number in bad:
        log(f"{path}:{number}: no row of this run's; cut out")
    if bad:
        copy = next(
            p
            for n in itertools.count(1)
            if not (p := path.with_name(f"{path.name}.damaged-{n}")).exists()
        )
        files.write_whole(copy, b"".join(lines))
        log(f"{path}: the file as it was is kept as {copy.name}")
    kept = [
        (line, row["tick"])
        for line, row in zip(lines, rows, strict=True)
        if row and row["tick"] < tick
    ]
    files.write_whole(path, "".join(line.decode("ascii") for line, _ in kept))
    return {tick for _, tick in kept}


def _no_needs(row: Mapping[str, Any]) -> bool:
    return True


_NEEDS: dict[
    str, Callable[[Mapping[str, Any]], bool]
] = {  # of rows that result.json and tables are made of
    "metrics.jsonl": lambda row: (
        isinstance(row["step"], int) and all(isinstance(v, int | float) for v in row.values())
    ),
    "evaluations.jsonl": lambda row: (
        all(isinstance(row[key], int | float) for key in ("step", "accuracy", "generated_tokens"))
        and all(isinstance(v, int | float) for v in row["by_family"].values())
    ),
    "templates.jsonl": lambda row: (
        row.get("cover_rank") is None
        or (
            isinstance(row["dev_score"], int | float)
            and isinstance(row["text"], str)
            and isinstance(row["epoch"], int)
        )
    ),
}


def _row(line: bytes, needs: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
    """The row of a line; None if it is not whole, or is none."""
    try:
        row = json.loads(line.decode("ascii"))
        return row if line.endswith(b"\n") and type(row["tick"]) is int and needs(row) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
