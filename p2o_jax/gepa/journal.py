"""A record of every evaluate and reflect call of a phase, from which an interrupted phase resumes.

On resume the search is rerun from its start, and recorded calls are answered from the journal.
Nothing is generated twice. Fresh answers are returned exactly as they are recorded, so a resumed
phase ends with the same bits as an uninterrupted one. The cost of each call is recorded, too, so a
ledger counts every generated token once, however often the phase was interrupted.
"""

import base64
import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from p2o_jax.types import Outcome, Question, Reply, digest

T = TypeVar("T")


class JournalMismatch(RuntimeError):
    """The journal belongs to another phase, other questions, weights or code, or is damaged before
    its last line.
    """


def read_bytes(path: Path) -> bytes:
    """Returns the file's bytes; empty if there is no file."""
    return path.read_bytes() if path.exists() else b""


class Journal:
    """A JSONL file with a line per call: number, kind, digest of the inputs, answer, and a check
    digest of the line.

    Args:
        path: the file, created by the first call.
        phase: everything that the answers depend on besides the inputs: run seed, epoch, training
            step.
        write: whether this process writes; exactly one of several hosts does.
        load: returns the bytes of the file, the same on all hosts.

    Raises:
        JournalMismatch: on creation, for damage before the last line; in a call, if another one is
            recorded.
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
        """Sets how costs are recorded: `spent` returns the cost of the last call as JSON;
        `replayed` receives that of a recorded call.
        """
        self._spent, self._replayed = spent, replayed

    @property
    def num_left(self) -> int:
        """Recorded calls that have not been replayed yet."""
        return len(self._records) - self._next

    def evaluate(
        self, evaluate: Callable[[Sequence[tuple[str, Question]]], Sequence[Outcome]]
    ) -> Callable[..., list[Outcome]]:
        """Returns `evaluate` with its calls recorded."""

        def recorded(pairs: Sequence[tuple[str, Question]]) -> list[Outcome]:
            inputs = [
                part
                for template, question in pairs
                for part in (template, question.id, question.answer)
            ]
            return _unpack(self._call("evaluate", inputs, lambda: _pack(evaluate(pairs))))

        return recorded

    def reflect(
        self, reflect: Callable[[Sequence[str]], Sequence[Reply | str | None]]
    ) -> Callable[[Sequence[str]], list[Reply | None]]:
        """Returns `reflect` with its calls recorded."""

        def recorded(prompts: Sequence[str]) -> list[Reply | None]:
            values = self._call(
                "reflect",
                prompts,
                lambda: [r.to_json() if isinstance(r, Reply) else r for r in reflect(prompts)],
            )
            return [None if value is None else Reply.from_json(value) for value in values]

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
                file.truncate(self._size)  # an incomplete line of an interrupted write
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)


def resume(
    open_journal: Callable[[], Journal],
    run: Callable[[Journal], T],
    retire: Callable[[str], None],
) -> T:
    """Returns what `run` returns with the journal. If the journal does not match, it is retired and
    `run` starts over.

    `retire` receives the reason, and must make `open_journal` return an empty journal.
    """
    try:
        return run(open_journal())
    except JournalMismatch as e:
        retire(str(e))
    return run(open_journal())


def _parse(path: Path, data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Returns the records and their size in bytes; a damaged last line is ignored."""
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
    """Returns outcomes as a JSON value with compressed texts: a phase generates hundreds of
    megabytes of them.
    """
    texts = zlib.compress(json.dumps([[o.text, o.feedback] for o in outcomes]).encode("ascii"))
    return {
        "scores": [float(o.score) for o in outcomes],
        "format_scores": [float(o.format_score) for o in outcomes],
        "texts": base64.b64encode(texts).decode("ascii"),
    }


def _unpack(value: dict[str, Any]) -> list[Outcome]:
    texts = json.loads(zlib.decompress(base64.b64decode(value["texts"])))
    figures = zip(value["scores"], value["format_scores"], texts, strict=True)
    return [Outcome(score, form, text, feedback) for score, form, (text, feedback) in figures]
