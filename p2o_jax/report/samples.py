"""The rollouts that a page shows: all that were written down, or as many as fit, drawn evenly over the run."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from p2o_jax.report.rows import MAX_CHARS, clip, is_drawn, lines, number, parsed

QUESTION_ID = re.compile(rb'"question_id": "([^"]*)"')
QUESTION_CHARS = 600  # of a question that is shown beside a template or in a list


def chosen(path: Path, max_bytes: int, notes: list[str]) -> dict[str, Any]:
    """`rows` of samples.jsonl of about `max_bytes`, and how many there are in all; longer texts lose their middle."""
    sizes = [min(len(line), MAX_CHARS) for _, line in lines(path)]
    share = max_bytes / max(sum(sizes), 1)
    rows = []
    for number_of_line, line in lines(path):
        if not is_drawn(str(number_of_line), share):
            continue
        if (row := parsed(line)) is None:
            notes.append(f"{path.name}:{number_of_line}: no row of a run; left out")
        else:
            rows.append(_shown(row))
    return {"total": len(sizes), "rows": rows}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    texts = {name: clip(row.get(name) or "") for name in ("question", "answer", "template", "response")}
    numbers = {name: number(row.get(name)) for name in ("step", "score", "tokens")}
    return {"question_id": row.get("question_id", ""), "status": row.get("status", ""), "stopped": row.get("stopped"), **texts, **numbers}


def question_texts(path: Path, wanted: Collection[str]) -> dict[str, str]:
    """What the questions with these ids ask, as far as some sample of them was written down."""
    texts: dict[str, str] = {}
    for _, line in lines(path):
        match = QUESTION_ID.search(line)
        name = match[1].decode("utf-8", "replace") if match else ""
        if name in wanted and name not in texts and (row := parsed(line)):
            texts[name] = clip(row.get("question") or "", QUESTION_CHARS)
    return texts
