"""Rows of the suites by arm and dial, and cells of the tables made from them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.science import arms, estimates
from benchmarks.science.arms import Arm
from benchmarks.science.estimates import Estimate
from p2o_jax.config import ConfigError

BUDGET = 80_000.0
MOST_SEEDS = 100  # the largest number of seeds to look for

Rows = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]  # by (arm, dial): a row per seed


def read(results: Path) -> Rows:
    """The rows of every arm and dial, by their settings.

    Arms that several suites share appear under each of their names.
    """
    by_settings = {
        tuple(row["overrides"]): row
        for row in map(json.loads, results.read_text(encoding="utf-8").splitlines())
    }
    rows: dict[
        tuple[str, str], dict[int, Mapping[str, Any]]
    ] = {}  # by seed: an arm may be in several suites
    for suite in arms.SUITES:
        for run in arms.runs(suite, MOST_SEEDS):
            if run.overrides in by_settings:
                rows.setdefault((run.arm.name, run.dial), {})[run.seed] = with_mean(
                    by_settings[run.overrides]
                )
    if not rows:
        raise ConfigError(f"{results}: no rows")
    return {key: list(by_seed.values()) for key, by_seed in rows.items()}


def verdict(arm: Arm, compared: tuple[Estimate, int]) -> str:
    """Whether the paper's claim about the arm holds; without a claim, what is better."""
    if not arm.expected:
        return said(compared, "better", "worse")
    words = ("yes", "no: the other way round")
    return said(compared, *(words if arm.expected > 0 else words[::-1]))


def said(compared: tuple[Estimate, int], positive: str, negative: str) -> str:
    """Words for a difference; "uncorrected" where the correction does not confirm it."""
    difference, sign = compared
    if not difference.sign:
        return "no difference shown"
    return (positive if difference.sign > 0 else negative) + ("" if sign else ", uncorrected")


def with_mean(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its mean accuracy over the budget."""
    return {**row, "mean_accuracy": estimates.mean_accuracy(row["curve"], BUDGET)}


def values(rows: Sequence[Mapping[str, Any]], figure: str) -> list[float]:
    """A figure of the rows of an arm."""
    return list(estimates.by_seed(rows, figure).values())


def difference(rows: Rows, ours: tuple[str, str], theirs: tuple[str, str], figure: str) -> Estimate:
    """The estimate of the difference of two arms, each with its dial, in a figure."""
    return estimates.difference(
        estimates.by_seed(rows[ours], figure), estimates.by_seed(rows[theirs], figure)
    )


# two arms, each with its dial
Pair = tuple[tuple[str, str], tuple[str, str]]


def compared(rows: Rows, pairs: Sequence[Pair]) -> dict[Pair, tuple[Estimate, int]]:
    """The difference of each pair that has rows, and its sign among those of the table."""
    there = [pair for pair in pairs if rows.get(pair[0]) and rows.get(pair[1])]
    differences = [difference(rows, *pair, "mean_accuracy") for pair in there]
    return dict(
        zip(there, zip(differences, estimates.signs(differences), strict=True), strict=True)
    )


def less(compared: tuple[Estimate, int] | None) -> str:
    """A difference with its interval, bold if it remains after the correction."""
    if compared is None:
        return "–"
    d, sign = compared
    text = f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
    return f"**{text}**" if sign else text


def cell(rows: Sequence[Mapping[str, Any]] | None, figure: str) -> str:
    """The mean of a figure over the seeds of an arm, with its interval."""
    if not rows:
        return "–"
    return interval(values(rows, figure))


def interval(values: Sequence[float]) -> str:
    """Mean, interval and number of values."""
    e = estimates.estimate(values)
    return f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}] ({e.n})"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def span(values: Sequence[float]) -> str:
    """The smallest and the largest value."""
    distinct = sorted(set(values))
    return (
        "–"
        if not distinct
        else f"{distinct[0]:.1e}"
        if len(distinct) == 1
        else f"{distinct[0]:.1e} to {distinct[-1]:.1e}"
    )
