"""The tables of the suite on a real model in docs/results.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.science import estimates, report, tables, tasks
from benchmarks.science.real_arms import ARMS, BUDGET
from p2o_jax.runtime import files

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = (
    "<!-- real: written by python -m benchmarks.science.real --report yes -->",
    "<!-- /real -->",
)


def write(rows: Sequence[Mapping[str, Any]], page: Path = PAGE) -> None:
    """Writes the tables between the page's markers.

    Raises:
        ConfigError: the page has no markers.
    """
    before, after = report.around(page, BEGIN, END)
    tables = (arms_table(rows), tasks_table(rows), elsewhere_table(rows))
    parts = [before, *(table for table in tables if table), after]
    files.write_whole(page, "\n\n".join(parts))


def arms_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per arm of the first task: accuracy of each seed at the end, its mean over the budget,
    the difference from GRPO with the same seeds, and what a run takes.
    """
    head = (
        "arm",
        "accuracy of each seed",
        "mean accuracy over the budget",
        "less GRPO [95 %]",
        "tokens of right templated responses masked",
        "generated tokens",
        "seconds",
        "peak memory",
    )
    base, lines = _mean_accuracies(_of(rows, "grpo")), []
    for arm in (arm for arm in ARMS if arm.task == "boxed"):
        own = _of(rows, arm.name)
        if not own:
            continue
        means = _mean_accuracies(own)
        masked = [row["frac_right_masked"] for row in own if row["frac_right_masked"] is not None]
        cells = (
            arm.what,
            _accuracies(own),
            f"{_mean(list(means.values())):.3f}" if means else "",
            _less(means, base) if arm.name != "grpo" else "",
            f"{_mean(masked):.1%}" if masked else "",
            f"{_mean([row['generated_tokens'] for row in own]):,.0f}",
            f"{_mean([row['seconds'] for row in own]):.0f}",
            f"{max(row['peak_gib'] for row in own):.1f} GiB",
        )
        lines.append(cells)
    return tables.table(head, lines)


def tasks_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per task: what `probe` said before training, and what training did; empty if no task
    was probed.
    """
    head = (
        "form of the answer",
        "right before training: plainly",
        "under the best template",
        "what `probe` said",
        "GRPO, accuracy of each seed",
        "P²O, accuracy of each seed",
        "P²O less GRPO, mean over the budget [95 %]",
    )
    lines = []
    for row in rows:
        if "probe" not in row:
            continue
        task = tasks.TASKS[row["probe"]]
        suffix = "" if task.name == "boxed" else f"-{task.name}"
        grpo, p2o = (_of(rows, f"{arm}{suffix}") for arm in ("grpo", "p2o"))
        cells = (
            task.what,
            _rate(row["plain"]["sampled"]),
            _rate(row["best"]["sampled"]),
            row["verdict"].split(":")[0],
            _accuracies(grpo),
            _accuracies(p2o),
            _less(_mean_accuracies(p2o), _mean_accuracies(grpo)),
        )
        lines.append(cells)
    return tables.table(head, lines) if lines else ""


def elsewhere_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per run for which it was measured: accuracy on the other sets, and negative
    log-likelihood of neutral text, each before and after training; empty if there is none.
    """
    head = ("arm", "seed", "held out", "other families", "other wording", "nats per neutral token")
    lines = [
        (
            arm.what if arm.task == "boxed" else f"{arm.what}, {tasks.TASKS[arm.task].what}",
            str(row["seed"]),
            *(_change(row["other_sets"][name], 3) for name in ("heldout", "families", "wording")),
            _change(row["neutral_nll"], 3),
        )
        for arm in ARMS
        for row in _of(rows, arm.name)
        if "neutral_nll" in row
    ]
    return tables.table(head, lines) if lines else ""


def _of(rows: Sequence[Mapping[str, Any]], arm: str) -> list[Mapping[str, Any]]:
    """Returns an arm's rows, by seed."""
    return sorted((row for row in rows if row.get("arm") == arm), key=lambda row: row["seed"])


def _accuracies(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['accuracy']:.3f}" for row in rows)


def _rate(estimate: Mapping[str, float]) -> str:
    return f"{estimate['mean']:.1%} [{estimate['low']:.1%}, {estimate['high']:.1%}]"


def _change(values: Sequence[float | None], digits: int) -> str:
    """Before and after training; what was not measured before is left out."""
    return " → ".join(f"{value:.{digits}f}" for value in values if value is not None)


def _mean_accuracies(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    return {
        row["seed"]: estimates.mean_accuracy(row["curve"], BUDGET) for row in rows if row["curve"]
    }


def _less(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return ""
    less = estimates.estimate([ours[seed] - theirs[seed] for seed in seeds])
    return f"{less.mean:+.3f} [{less.low:+.3f}, {less.high:+.3f}]"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
