"""The templates of each prompt phase: a tree of candidates, and the rejected proposals."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from p2o_jax.report.rows import clip, is_drawn, number

# A limit for all rejected templates of a run: there may be thousands of thousands of characters.
REJECTED_CHARS = 1_500_000


def epochs(rows: Iterable[Mapping[str, Any]], success_above: float) -> list[dict[str, Any]]:
    """A tree per epoch: `dev` question ids, `nodes` (candidates), and `rejected` proposals.

    `solves` of a candidate has a 0 or 1 for each dev question. `reasons` counts the rejected
    proposals by reason, and `rejected_total` counts all of them. If they have too many characters,
    `rejected` is a sample.
    """
    by_epoch: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_epoch.setdefault(row["epoch"], []).append(row)
    chars = sum(
        min(len(row.get("text") or ""), 20_000) + 100
        for part in by_epoch.values()
        for row in part
        if "outcome" in row
    )
    share = min(REJECTED_CHARS / max(chars, 1), 1.0)
    return [_epoch(epoch, part, success_above, share) for epoch, part in sorted(by_epoch.items())]


def _epoch(
    epoch: int, rows: list[Mapping[str, Any]], success_above: float, share: float
) -> dict[str, Any]:
    candidates = [row for row in rows if "candidate" in row]
    rejected = [row for row in rows if "outcome" in row]
    dev = list(candidates[0]["dev"]) if candidates else []
    return {
        "epoch": epoch,
        "dev": dev,
        "nodes": [_candidate(row, dev, success_above) for row in candidates],
        "rejected": [
            _proposal(row) for i, row in enumerate(rejected) if is_drawn(f"{epoch}/{i}", share)
        ],
        "rejected_total": len(rejected),
        "reasons": dict(Counter(row["outcome"] for row in rejected).most_common()),
    }


def _candidate(row: Mapping[str, Any], dev: list[str], success_above: float) -> dict[str, Any]:
    return {
        "id": row["candidate"],
        "template_id": row.get("template_id", ""),
        "text": clip(row["text"]),
        "parent": row["parent"],
        "score": number(row["dev_score"], 3),
        "rank": row["cover_rank"],
        "solves": "".join(
            "1" if row["dev"].get(question, 0) > success_above else "0" for question in dev
        ),
    }


def _proposal(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text": clip(row.get("text") or ""),
        "parent": row.get("parent"),
        "outcome": row["outcome"],
        "iteration": row.get("iteration"),
        "before": number(row.get("before"), 3),
        "after": number(row.get("after"), 3),
        "minibatch": row.get("minibatch") or [],
    }
