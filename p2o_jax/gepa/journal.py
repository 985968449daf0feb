"""A record of every evaluate and reflect call of a phase, so that a killed phase goes on where it
stopped.

The search is run again from its start; calls that are on record are answered from it. Nothing is
generated twice, and because a fresh answer is returned as it was written down, a resumed phase ends
with the same bits as an uninterrupted one. What a call has cost is on record, too, so that a ledger
counts every generated token once, however often the phase was killed.
"""

import base64
import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from p2o_jax.types import Outcome, Question, digest

T = TypeVar("T")


class JournalMismatch(RuntimeError):
    """The journal belongs to another phase, other questions, other weights or other code, or is
    damaged before its last line.
    """


def read_bytes(path: Path) -> bytes:
    """The file's bytes; none if there is no file."""
    return path.read_bytes() if path.exists() else b""


class Journal:
    """A JSONL file, one line per call: its number, kind, the digest of what was asked, the answer,
    and a check digest of the line.

    Args:
        path: the file, created with the first call.
        phase: names what the answers depend on besides the inputs: run seed, epoch, training step.
        write: off on all but one of several hosts.
        load: gives the bytes of the file; on many hosts all must be given the same.

    Raises:
        JournalMismatch: here for damage before the last line, and in a call that is not the one on
            record.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        phase: str,
        write: bool = True,
        load: Callable[[Path], bytes] = read_bytes,
    ):
        self._path, self._phase, self._write = Path(path), phase, write
        self._records, self._size = _parse(self._path, load(self._path))
        self._next = 0
        self._spent: Callable[[], Any] = lambda: None
        self._replayed: Callable[[Any], None] = lambda cost: None

    def account(self, spent: Callable[[], Any], replayed: Callable[[Any], None]) -> None:
        """Has costs recorded: `spent` tells, as JSON, what a call just made has cost; `replayed`
        is told that of a call on record.
        """
        self._spent, self._replayed = spent, replayed

    @property
    def num_left(self) -> int:
        """Recorded calls that have not been asked for again yet."""
        return len(self._records) - self._next

    def evaluate(
        self, evaluate: Callable[[Sequence[tuple[str, Question]]], Sequence[Outcome]]
    ) -> Callable[..., list[Outcome]]:
        """`evaluate`, recorded."""

        def recorded(pairs: Sequence[tuple[str, Question]]) -> list[Outcome]:
            inputs = [
                part
                for template, question in pairs
                for part in (template, question.id, question.answer)
            ]
            return _unpack(self._call("evaluate", inputs, lambda: _pack(evaluate(pairs))))

        return recorded

    def reflect(
        self, reflect: Callable[[Sequence[str]], Sequence[str | None]]
    ) -> Callable[[Sequence[str]], list[str | None]]:
        """`reflect`, recorded."""

        def recorded(prompts: Sequence[str]) -> list[str | None]:
            return list(self._call("reflect", prompts, lambda: list(reflect(prompts))))

        return recorded

    def _call(self, kind: str, inputs: Sequence[str], answer: Callable[[], Any]) -> Any:
        key, number = digest(self._phase, kind, *inputs), self._next
        if number < len(self._records):
            record = self._records[number]
            if (record["call"], record["kind"], record["key"]) != (number, kind, key):
                raise JournalMismatch(
                    f"{self._path}: call {number} of phase {self._phase!r} is a {kind} with key"
                    f" {key}, but the journal has call {record['call']}, {record['kind']} with key"
                    f" {record['key']}"
                )
            self._replayed(record.get("cost"))
        else:
            record = {
                "call": number,
                "kind": kind,
                "key": key,
                "answer": answer(),
                "cost": self._spent(),
            }
            if self._write:
                self._append(record)
            self._records.append(record)
        self._next += 1
        return record["answer"]

    def _append(self, record: dict[str, Any]) -> None:
        line = (json.dumps({**record, "check": digest(json.dumps(record))}) + "\n").encode("ascii")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab") as file:
            if file.tell() > self._size:
                file.truncate(self._size)  # a line that was torn off by a kill
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)


def resume(
    open_journal: Callable[[], Journal],
    run: Callable[[Journal], T],
    set_aside: Callable[[str], None],
) -> T:
    """What `run` returns with the journal; where that turns out to be of something else, it is set
    aside and `run` starts afresh.

    `set_aside` is told why, and has to see to it that `open_journal` gives an empty one.
    """
    try:
        return run(open_journal())
    except JournalMismatch as e:
        set_aside(str(e))
    return run(open_journal())


def _parse(path: Path, data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The records, and the bytes that they take up; a damaged last line is left out."""
    lines = data.splitlines(keepends=True)
    records: list[dict[str, Any]] = []
    size = 0
    for i, line in enumerate(lines):
        record = _record(line)
        if record is None:
            if i + 1 < len(lines):
                raise JournalMismatch(f"{path}: line {i + 1} of {len(lines)} is damaged")
            break
        records.append(record)
        size += len(line)
    return records, size


def _record(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
        check = record.pop("check")
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    return record if check == digest(json.dumps(record)) else None


def _pack(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Outcomes as a JSON value, the texts compressed: a phase generates hundreds of megabytes of
    them.
    """
    texts = zlib.compress(json.dumps([[o.text, o.feedback] for o in outcomes]).encode("ascii"))
    return {
        "scores": [float(o.score) for o in outcomes],
        "format_scores": [float(o.format_score) for o in outcomes],
        "transfers": [float(o.transfer) for o in outcomes],
        "texts": base64.b64encode(texts).decode("ascii"),
    }


def _unpack(value: dict[str, Any]) -> list[Outcome]:
    texts = json.loads(zlib.decompress(base64.b64decode(value["texts"])))
    figures = zip(value["scores"], value["format_scores"], texts, value["transfers"], strict=True)
    return [
        Outcome(score, form, text, feedback, transfer)
        for score, form, (text, feedback), transfer in figures
    ]
