"""Metrics over policy steps and generated tokens, thinned for display, and accuracies."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from p2o_jax.evaluation.estimates import interval_of_mean
from p2o_jax.report.rows import number

MAX_POINTS = 1000  # per curve
# Kinds of rows, each with the metrics that only this kind has.
KINDS = {
    "policy": ("train/bad_updates",),
    "evaluation": ("eval/accuracy", "eval/nll"),
    "prompts": ("gepa/skipped",),
}
AXES = {"step": "step", "tokens": "ledger/generated_tokens"}


def of_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The curves of each kind of row.

    `every` is the number of rows per point, `step` and `tokens` are the axes, and `values` maps
    each metric to a list.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        kind = next(
            (kind for kind, marks in KINDS.items() if not row.keys().isdisjoint(marks)), "policy"
        )
        by_kind.setdefault(kind, []).append(row)
    return {kind: _columns(part) for kind, part in by_kind.items()}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    every = math.ceil(len(rows) / MAX_POINTS)
    groups = [rows[i : i + every] for i in range(0, len(rows), every)]
    names = sorted({name for row in rows for name in row if "/" in name})
    columns = {name: [number(_of_group(name, group)) for group in groups] for name in names}
    axes = {
        axis: [number(group[-1].get(name), 12) for group in groups] for axis, name in AXES.items()
    }
    return {"every": every, **axes, "values": columns}


def _of_group(name: str, group: Sequence[Mapping[str, Any]]) -> float | None:
    """A metric of consecutive rows: the last of totals, the largest of maxima, else the mean."""
    values = [row[name] for row in group if number(row.get(name)) is not None]
    if not values:
        return None
    if name.startswith(("ledger/", "time/ledger_")):
        return values[-1]
    return max(values) if name.endswith("_max") else sum(values) / len(values)


def not_finite(rows: Iterable[Mapping[str, Any]]) -> int:
    """The number of values that are not finite numbers and cannot be drawn."""
    return sum(number(value) is None for row in rows for name, value in row.items() if "/" in name)


def finite(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The rows without values that are not finite numbers."""
    return [
        {name: value for name, value in row.items() if number(value) is not None} for row in rows
    ]


def evaluations(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accuracies on held-out questions with 95 % intervals.

    Their `parts` are accuracies by benchmark, or by question family if there is only one benchmark.
    """
    points = []
    for row in rows:
        low, high = interval_of_mean(
            row["accuracy"], row.get("standard_error"), row.get("questions", 0)
        )
        parts = (
            {name: part["accuracy"] for name, part in row["sets"].items()}
            if "sets" in row
            else row.get("by_family", {})
        )
        points.append(
            {
                "step": row["step"],
                "tokens": number(row.get("generated_tokens"), 12),
                "accuracy": number(row["accuracy"]),
                "low": number(low),
                "high": number(high),
                "questions": row.get("questions", 0),
                "templated": bool(row.get("template", "").strip()),
                "parts": {name: number(value) for name, value in parts.items()},
            }
        )
    return points
