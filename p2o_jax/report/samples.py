"""The rollouts that a page shows: all that were written down, or as many as fit, drawn evenly
over the run; or a server's, page by page.
"""

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
QUESTION_CHARS = 600  # of a question that is shown beside a template or in a list
SHARED = ("question", "answer", "template")  # texts that many samples have in common
SEARCHED = ("question", "template", "response", "answer", "question_id")
PAGE_ROWS = 20


def chosen(path: Path, max_bytes: int, notes: list[str]) -> dict[str, Any]:
    """`rows` of samples.jsonl of about `max_bytes`, and how many there are in all; longer texts
    lose their middle.

    A row has, in place of each text of SHARED, its place in `texts`.
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
            told = shown(row)
            rows.append(told | {name: texts.setdefault(told[name], len(texts)) for name in SHARED})
    return {"total": len(sizes), "rows": rows, "texts": list(texts)}


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a page shows of a sample."""
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
    """What the questions with these ids ask, as far as some sample of them was written down."""
    texts: dict[str, str] = {}
    for _, line in lines(path):
        match = QUESTION_ID.search(line)
        name = match[1].decode("utf-8", "replace") if match else ""
        if name in wanted and name not in texts and (row := _row(line)):
            texts[name] = clip(row.get("question") or "", QUESTION_CHARS)
    return texts


def _row(line: bytes) -> dict[str, Any] | None:
    row, problem = checked(line, SAMPLES.problem)
    return None if problem else row


class SampleFile:
    """A samples.jsonl, searched and read page by page; held in memory is where its rows begin,
    and where the last search found any.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        # a row's place; 2 * its status + is it templated
        self._places, self._kinds, self._end, self._bad = (
            array("Q"),
            array("Q"),
            0,
            0,
        )
        self._statuses: dict[str, int] = {}
        self._query: tuple[str, ...] = ()
        self._found = array("Q")  # rows of the last query

    def page(self, search: str, status: str, prompt: str, order: str, page: int) -> dict[str, Any]:
        """The page's `rows`, how many were `found`, how many there are (`total`), lines that are
        none (`bad`), and all `statuses`.

        Args:
            search: a text, in any case, of a sample's question, template, response or answer, or
                its question's id.
            status: a status, or "all".
            prompt: "plain", "templated" or "all".
            order: "first" or "last" step first.
        """
        with self._lock:
            self._read_on()
            query = (search, status, prompt, str(self._end))
            if query != self._query:
                self._query, self._found = (
                    query,
                    array("Q", self._search(search.lower(), status, prompt)),
                )
            found = self._found if order == "first" else self._found[::-1]
            rows = [
                shown(row)
                for _, row in self._rows(found[page * PAGE_ROWS : (page + 1) * PAGE_ROWS])
            ]
            counts = {"found": len(found), "total": len(self._places), "bad": self._bad}
            return {"rows": rows, **counts, "statuses": sorted(self._statuses)}

    def _read_on(self) -> None:
        """Takes in the whole lines that have come since the last time; a file that was cut, as a
        resumed run's is, is read again.
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
        """(number, row) of these rows; those whose line does not have the word are left out unread."""
        with open(self.path, "rb") if self.path.exists() else BytesIO() as f:
            for i in which:
                f.seek(self._places[i])
                line = f.readline()
                if word in line.lower() and (row := _row(line)):
                    yield i, row
