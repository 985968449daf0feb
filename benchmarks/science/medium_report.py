"""The tables of docs/results.md on the medium world, and on sets that differ from training."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.science import arms, estimates, tables
from benchmarks.science.arms import Arm
from benchmarks.science.tables import Rows
from p2o_jax.toy_world import medium as language

SETS = {
    "world": "as in training",
    "longer": "longer",
    "wording": "other wording",
    "untrained": "untrained families",
}


STEPS, EVERY = 24, 6  # policy steps, at all and between evaluations (configs/science.py)
FIGURES = {
    "mean_accuracy": "mean over the budget",
    "accuracy": "end",
    "wide": "end, gate .05",
    "narrow": "end, gate .001",
    "after_steps": f"after {STEPS} steps",
}


def medium(rows: Rows) -> str:
    """Figures of each arm on the medium world, and less those of the arm that it varies; empty
    without rows.
    """
    own = {
        arm.name: [_with_figures(row) for row in rows[arm.name, arms.HEADLINE]]
        for arm in arms.PAPER_MEDIUM
        if (arm.name, arms.HEADLINE) in rows
    }
    if not own:
        return ""
    several = [arm for arm in arms.PAPER_MEDIUM if arm.name in own]
    head = ("arm", *FIGURES.values(), "right templated tokens masked")
    lines = [
        (
            arm.what,
            *(tables.cell(own[arm.name], figure) for figure in FIGURES),
            _masked(own[arm.name]),
        )
        for arm in several
    ]
    parts = [
        f"## The medium world (dial {arms.HEADLINE})",
        "Plain accuracy:",
        tables.table(head, lines),
        "Less that of another arm, paired by seed; the last column is about the mean:",
        _differences(own, [arm for arm in several if arm.against in own]),
    ]
    return "\n\n".join(parts)


def _differences(own: Mapping[str, Sequence[Mapping[str, Any]]], several: Sequence[Arm]) -> str:
    """A line per arm: its figures less those of the arm that it varies."""
    names = {arm.name: arm.what for arm in arms.PAPER_MEDIUM}
    differences = [
        estimates.difference(
            *(estimates.by_seed(own[name], figure) for name in (arm.name, arm.against))
        )
        for arm in several
        for figure in FIGURES
    ]
    compared = zip(differences, estimates.signs(differences), strict=True)
    lines = []
    for arm in several:
        cells = [next(compared) for _ in FIGURES]
        agrees = tables.verdict(arm, cells[0])
        less = map(tables.less, cells)
        lines.append((arm.what, names[arm.against], *less, arm.claim or "–", agrees))
    head = ("arm", "less", *FIGURES.values(), "the paper", "does it agree?")
    return tables.table(head, lines)


def _with_figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its accuracy by gate, and after some policy steps."""
    gates: dict[str, list[float]] = {"wide": [], "narrow": []}
    for name, accuracy in row["by_family"].items():
        is_narrow = language.FAMILIES[name].gate == language.NARROW
        gates["narrow" if is_narrow else "wide"].append(accuracy)
    means = {gate: sum(values) / len(values) for gate, values in gates.items()}
    after = row["curve"][min(STEPS // EVERY, len(row["curve"]) - 1)][1]
    return {**row, **means, "after_steps": after}


def _masked(rows: Sequence[Mapping[str, Any]]) -> str:
    known = [row["frac_right_masked"] for row in rows if row["frac_right_masked"] is not None]
    return f"{sum(known) / len(known):.1%}" if known else "–"


def elsewhere(rows: Rows) -> str:
    """Accuracy after training on sets that differ from training in kind, and less that of GRPO with
    the same seeds; empty without rows.
    """
    lines, differences = [], []
    for size, suite in (("small", "elsewhere"), ("medium", "paper-medium")):
        base, *_ = several = arms.SUITES[suite].arms
        for dial in arms.SUITES[suite].dials:
            for arm in several:
                after = _after(rows, arm, dial)
                if not after["world"]:
                    continue
                less = [
                    estimates.difference(after[name], theirs)
                    if after[name].keys() & theirs.keys()
                    else None
                    for name, theirs in _after(rows, base, dial).items()
                ]
                lines.append((f"{size}, {dial}", arm.what, after))
                differences.append([] if arm is base else less)
    if not lines:
        return ""
    known = [d for several in differences for d in several if d]
    signs = iter(estimates.signs(known))
    cells = [
        [tables.less((d, next(signs))) if d else "–" for d in several] or [""] * len(SETS)
        for several in differences
    ]
    accuracies = tables.table(
        ("world, dial", "arm", *SETS.values()),
        [(where, what, *map(_cell, after.values())) for where, what, after in lines],
    )
    less_grpo = tables.table(
        ("world, dial", "arm", *SETS.values()),
        [
            (where, what, *own)
            for (where, what, _), own in zip(lines, cells, strict=True)
            if any(own)
        ],
    )
    return "\n".join(
        [
            "## Out of distribution",
            "",
            "Plain accuracy at the end:",
            "",
            accuracies,
            "",
            "Less that of GRPO, paired by seed:",
            "",
            less_grpo,
        ]
    )


def _after(rows: Rows, arm: Arm, dial: str) -> dict[str, dict[int, float]]:
    """By set: the accuracy of each seed after training."""
    own = [row for row in rows.get((arm.name, dial), ()) if row.get("other_sets")]
    return {
        name: {row["seed"]: row["other_sets"][name][1] for row in own if name in row["other_sets"]}
        for name in SETS
    }


def _cell(by_seed: Mapping[int, float]) -> str:
    return tables.interval(list(by_seed.values())) if by_seed else "–"
