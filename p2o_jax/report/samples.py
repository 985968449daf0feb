"""The samples of a page: all recorded rollouts, a uniform sample of them, or pages for a server."""

import json
import re
import threading
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from p2o_jax.report.rows import MAX_CHARS, clip, is_drawn, number
from p2o_jax.tracking.record_rows import SAMPLES, checked, lines

QUESTION_ID = re.compile(rb'"question_id": "([^"]*)"')
QUESTION_CHARS = 600  # in a question next to a template or in a list
SHARED = ("question", "answer", "template")  # texts that are stored once for many samples
SEARCHED = ("question", "template", "response", "answer", "question_id")
PAGE_ROWS = 20


def chosen(path: Path, max_bytes: int, notes: list[str]) -> dict[str, Any]:
    """A sample of samples.jsonl with about `max_bytes` bytes, with clipped texts.

    Returns the `rows`, their `total` number in the file, and `texts`. Each text of SHARED is
    replaced in a row by its index in `texts`.
    """
    sizes = [min(len(line), MAX_CHARS) for _, line in lines(path)]
    share = max_bytes / max(sum(sizes), 1)
    rows = []
    texts: dict[str, int] = {}
    for number_of_line, line in lines(path):
        if not is_drawn(str(number_of_line), share):
            continue
        row, problem = checked(line, SAMPLES.problem)
        if problem:
            notes.append(f"{path.name}:{number_of_line}: {problem}; left out")
        else:
            sample = shown(row)
            indices = {name: texts.setdefault(sample[name], len(texts)) for name in SHARED}
            rows.append(sample | indices)
    return {"total": len(sizes), "rows": rows, "texts": list(texts)}


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a sample that a page shows."""
    texts = {name: clip(row.get(name) or "") for name in (*SHARED, "response")}
    numbers = {name: number(row.get(name)) for name in ("step", "score", "tokens")}
    return {
        "question_id": row.get("question_id", ""),
        "status": row.get("status", ""),
        "stopped": row.get("stopped"),
        **texts,
        **numbers,
    }


def question_texts(path: Path, wanted: Collection[str]) -> dict[str, str]:
    """The whole texts of the questions with these ids, if a sample of them was recorded."""
    texts: dict[str, str] = {}
    for _, line in lines(path):
        match = QUESTION_ID.search(line)
        name = match[1].decode("utf-8", "replace") if match else ""
        if name in wanted and name not in texts and (row := _row(line)):
            texts[name] = row.get("question") or ""
    return texts


def _row(line: bytes) -> dict[str, Any] | None:
    row, problem = checked(line, SAMPLES.problem)
    return None if problem else row


class SampleFile:
    """A samples.jsonl that is searched and read page by page.

    Only the positions of its rows and the result of the last search are kept in memory.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._places = array("Q")  # the position of each row
        self._kinds = array("Q")  # for each row, 2 * status + whether it is templated
        self._end, self._bad = 0, 0
        self._statuses: dict[str, int] = {}
        self._query: tuple[str, ...] = ()
        self._hits = array("Q")  # rows of the last query

    def page(self, search: str, status: str, prompt: str, order: str, page: int) -> dict[str, Any]:
        """Returns a page of the samples that match a query.

        Args:
            search: a text to search for in a sample's question, template, response, answer and
                question id, ignoring case.
            status: a status, or "all".
            prompt: "plain", "templated" or "all".
            order: "first" or "last" step first.
            page: the number of the page, from 0.

        Returns:
            The `rows` of the page, the number of rows `found`, the `total` number of rows, the
            number of `bad` lines, and all `statuses`.
        """
        with self._lock:
            self._read_on()
            query = (search, status, prompt, str(self._end))
            if query != self._query:
                self._query = query
                self._hits = array("Q", self._search(search.lower(), status, prompt))
            hits = self._hits if order == "first" else self._hits[::-1]
            rows = [
                shown(row) for _, row in self._rows(hits[page * PAGE_ROWS : (page + 1) * PAGE_ROWS])
            ]
            counts = {"found": len(hits), "total": len(self._places), "bad": self._bad}
            return {"rows": rows, **counts, "statuses": sorted(self._statuses)}

    def _read_on(self) -> None:
        """Reads the complete lines that were appended since the last call.

        A file that has become shorter, as when a run resumes, is read again.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self._end:
            self._begin()
        if size == self._end:
            return
        with open(self.path, "rb") as f:
            f.seek(self._end)
            for line in f:
                if not line.endswith(b"\n"):
                    break
                if (row := _row(line)) is None:
                    self._bad += 1
                else:
                    status = self._statuses.setdefault(
                        clip(row.get("status", ""), 100), len(self._statuses)
                    )
                    self._places.append(self._end)
                    self._kinds.append(2 * status + bool(str(row.get("template") or "").strip()))
                self._end += len(line)

    def _search(self, search: str, status: str, prompt: str) -> list[int]:
        prompts = {"all": (0, 1), "plain": (0,), "templated": (1,)}.get(prompt, ())
        kinds = {
            2 * i + templated
            for name, i in self._statuses.items()
            for templated in prompts
            if status in ("all", name)
        }
        candidates = [i for i, kind in enumerate(self._kinds) if kind in kinds]
        if not search:
            return candidates
        rows = self._rows(
            candidates, json.dumps(search)[1:-1].encode() if search.isascii() else b""
        )
        return [
            i
            for i, row in rows
            if any(search in str(row.get(name, "")).lower() for name in SEARCHED)
        ]

    def _rows(
        self, which: Iterable[int], word: bytes = b""
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields number and row of the given rows, skipping lines that do not contain `word`."""
        with open(self.path, "rb") if self.path.exists() else BytesIO() as f:
            for i in which:
                f.seek(self._places[i])
                line = f.readline()
                if word in line.lower() and (row := _row(line)):
                    yield i, row
