"""Reads records from JSONL, JSON, CSV and Parquet files; the suffix decides the format."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from p2o_jax.data.answers import ExactFloat
from p2o_jax.data.layouts import Record

_MAX_FIELD = 2**31 - 1  # characters of a CSV field; the standard library's default is 131,072
# Line number (0 stands for the whole file) and record, or a problem in place of the record.
Row = tuple[int, Record | str]


def read(path: Path, alone: bool = False) -> Iterator[Row]:
    """Yields the records of a file, in order.

    With `alone`, a JSON file may hold a single object, like those of MATH.
    """
    reader = READERS.get(path.suffix.lower())
    if not path.exists():
        yield 0, "no such file"
    elif reader is None:
        yield 0, f"suffix must be one of {', '.join(READERS)}"
    else:
        try:
            yield from _read_json(path, alone) if reader is _read_json else reader(path)
        except OSError as e:
            yield 0, f"cannot be read: {e.strerror or e}"


def read_jsonl(path: Path) -> Iterator[Row]:
    """(line from 1, object or what is wrong with it) of each line that is not blank."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if raw.strip():
                yield line, _parse_json(raw)


def _read_json(path: Path, alone: bool = False) -> Iterator[Row]:
    raw = path.read_bytes()
    single = _parse_json(raw) if alone else ""
    records = _parse_json(raw, list) if isinstance(single, str) else [single]
    if isinstance(records, str):
        yield 0, records
    else:
        for number, record in enumerate(records, 1):
            is_object = isinstance(record, dict)
            problem = "" if is_object else f"expected a JSON object, got {kind(record)}"
            yield number, problem or record


def _parse_json(raw: bytes, expected: type = dict) -> Any:
    """The JSON value if it has the expected type, else a string that describes the problem."""
    try:
        value = json.loads(
            raw.decode("utf-8-sig"), parse_float=ExactFloat, object_pairs_hook=_unique
        )
    except _Repeated as e:
        return str(e)
    except UnicodeDecodeError:
        return "not UTF-8"
    except RecursionError:
        return "not JSON: nested too deeply"
    except ValueError as e:
        return f"not JSON: {e}"
    if not isinstance(value, expected):
        return (
            f"expected a JSON {'object' if expected is dict else 'list of objects'}, got"
            f" {kind(value)}"
        )
    return value


class _Repeated(ValueError):
    """A key or column that is there twice."""


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise _Repeated(_repeated([key for key, _ in pairs], "key"))
    return record


def _repeated(names: Sequence[str], kind: str) -> str:
    """The names that are there more than once; empty if none is."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    shown = ", ".join(f'"{name}"' for name in repeated)
    return f"the {kind}{'s' * (len(repeated) > 1)} {shown} more than once" if repeated else ""


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_MAX_FIELD)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            if problem := _repeated(reader.fieldnames or (), "column"):
                yield reader.line_num, problem
                return
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
            if problem := _repeated(file.schema_arrow.names, "column"):
                yield 0, problem
                return
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except pyarrow.ArrowException as e:
        yield number, f"not Parquet: {e}"


READERS = {".jsonl": read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def kind(value: Any) -> str:
    """The type of a JSON value, for messages."""
    return "null" if value is None else type(value).__name__
