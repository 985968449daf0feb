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


def medium(rows: Rows) -> str:
    """A line per arm on the medium world: accuracy, also by the gate of the families, the
    difference from the arm that it varies, and what the mask left out; empty without rows.
    """
    dial = arms.HEADLINE
    several = [arm for arm in arms.PAPER_MEDIUM if (arm.name, dial) in rows]
    if not several:
        return ""
    names = {arm.name: arm.what for arm in several}
    pairs = {arm.name: ((arm.name, dial), (arm.against, dial)) for arm in several if arm.against}
    compared = tables.compared(rows, list(pairs.values()))
    lines = []
    for arm in several:
        own, of = rows[arm.name, dial], compared.get(pairs.get(arm.name, ((), ())))
        lines.append(
            (
                arm.what,
                arm.claim or "–",
                tables.cell(own, "accuracy"),
                *_by_gate(own),
                tables.cell(own, "mean_accuracy"),
                _masked(own),
                f"{tables.less(of)} ({names[arm.against]})" if of else "",
                tables.verdict(arm, of) if of else "",
            )
        )
    head = (
        "arm",
        "the paper",
        "plain accuracy, end",
        "end, gate .05",
        "end, gate .001",
        "mean over the budget",
        "right templated tokens masked",
        "mean, less that of",
        "does it agree?",
    )
    return "\n".join([f"## The medium world (dial {dial})", "", tables.table(head, lines)])


def _by_gate(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The accuracy of the families with a wide gate, and of those with a narrow one."""
    narrow = {name for name, f in language.FAMILIES.items() if f.gate == language.NARROW}
    cells = []
    for names in (set(rows[0]["by_family"]) - narrow, narrow):
        means = [sum(row["by_family"][name] for name in names) / len(names) for row in rows]
        cells.append(f"{sum(means) / len(means):.3f}")
    return cells


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
