"""The JSONL files of a run: rows are appended, and on a later start cut back to its checkpoint."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2o_jax.runtime import files
from p2o_jax.tracking import record_rows

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
    check = record_rows.CHECKS[path.stem]()
    rows = [_row(line, check) for line in lines]
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
    files.write_whole(path, b"".join(line for line, _ in kept))
    return {tick for _, tick in kept}


def _row(line: bytes, check: record_rows.Check) -> record_rows.Row | None:
    """The row of a line; None if the line is torn off, or holds no row of its kind and tick."""
    row, problem = record_rows.checked(line, check)
    whole = line.endswith(b"\n") and line.isascii()
    return row if whole and not problem and type(row.get("tick")) is int else None
