"""The tables and plots of docs/results.md, computed from the rows of the results alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.science import arms, estimates
from benchmarks.science.arms import Arm
from benchmarks.science.estimates import Estimate
from p2o_jax.config import ConfigError
from p2o_jax.runtime import files

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "results.md"
DIAL_PLOT = ROOT / "docs" / "images" / "science-dial.png"
RECIPE_PLOT = ROOT / "docs" / "images" / "science-recipe.png"
BEGIN, END = (
    "<!-- science: written by python -m benchmarks.science --report yes -->",
    "<!-- /science -->",
)
BUDGET = 80_000.0
MOST_SEEDS = 100  # the largest number of seeds to look for
COLOURS = {
    "grpo": "C0",
    "grpo-16": "C9",
    "grpo-extra": "C2",
    "dapo": "C5",
    "faithful": "C1",
    "before": "C6",
    "recommended": "C3",
}

Rows = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]  # by (arm, dial): a row per seed


def write(results: Path) -> None:
    """Writes the part of docs/results.md between its markers, and the plots.

    Raises:
        ConfigError: the page has no markers, or there are no rows.
    """
    rows, (before, after) = read(results), around(PAGE, BEGIN, END)
    written = "\n\n".join(
        section for section in (dial(rows), paper(rows), recipe(rows), account(rows)) if section
    )
    files.write_whole(PAGE, f"{before}\n\n{written}\n\n{after}")
    plot_dial(rows)
    plot_recipe(rows)


def around(page: Path, begin: str, end: str) -> tuple[str, str]:
    """What stands before and after two markers of a page, the markers included.

    Raises:
        ConfigError: the page has no markers.
    """
    text = page.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise ConfigError(f"{page}: no lines {begin!r} and {end!r}")
    return text.split(begin)[0] + begin, end + text.split(end)[1]


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
                rows.setdefault((run.arm.name, run.dial), {})[run.seed] = _with_mean(
                    by_settings[run.overrides]
                )
    if not rows:
        raise ConfigError(f"{results}: no rows")
    return {key: list(by_seed.values()) for key, by_seed in rows.items()}


def dial(rows: Rows) -> str:
    """Final and mean accuracy of each arm at each dial, and where P²O is ahead."""
    several, dials = arms.SUITES["dial"]
    text = ["## The dial: when does P²O help?", ""]
    text += [f"![accuracy over generated tokens at four dials](images/{DIAL_PLOT.name})", ""]
    measured = " | ".join(
        _range([row["p_chain_plain"] for arm in several for row in rows.get((arm.name, d), ())])
        for d in dials
    )
    head = [
        "| | " + " | ".join(f"dial {d}" for d in dials) + " |",
        "| --- |" + " --- |" * len(dials),
        f"| measured P(chain, plain) | {measured} |",
    ]
    for title, figure in (
        ("at the end", "accuracy"),
        ("on average over the budget", "mean_accuracy"),
    ):
        text += [f"Plain accuracy on held-out hard questions {title}:", "", *head]
        for arm in several:
            cells = (_cell(rows.get((arm.name, d)), figure) for d in dials)
            text.append(f"| {arm.what} | " + " | ".join(cells) + " |")
        text.append("")
    text += [
        (
            "P²O (recommended) less the better of the GRPO arms, and less P²O as released, on"
            " average over the budget, paired by seed:"
        ),
        "",
    ]
    text += [head[0], head[1]]
    for title, others in (
        ("less the best GRPO arm", ("grpo", "grpo-16", "grpo-extra", "dapo")),
        ("less P²O as released", ("faithful",)),
    ):
        pairs = []
        for d in dials:
            there = [name for name in others if rows.get((name, d))]
            best = max(
                there,
                key=lambda name: estimates.estimate(_values(rows[name, d], "mean_accuracy")).mean,
                default="",
            )
            pairs.append((("recommended", d), (best, d)))
        compared = _compared(rows, pairs)
        cells = (
            _less(compared.get(pair))
            + (f" ({pair[1][0]})" if pair[1][0] and len(others) > 1 else "")
            for pair in pairs
        )
        text.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def paper(rows: Rows) -> str:
    """Each ablation of the paper next to the one here."""
    base = "faithful", arms.HEADLINE
    text = [f"## The paper's ablations in miniature (dial {arms.HEADLINE})", ""]
    text += [
        "| arm | the paper | plain accuracy, end | mean over the budget | mean, less P²O as"
        " released | does it agree? |"
    ]
    text += ["| --- | --- | --- | --- | --- | --- |"]
    several = arms.SUITES["paper"][0]
    pairs = {arm.name: ((arm.name, arms.HEADLINE), base) for arm in several}
    del pairs[base[0]]
    compared = _compared(rows, list(pairs.values()))
    for arm in several:
        key = arm.name, arms.HEADLINE
        of = compared.get((key, base))
        less = "" if key == base else _less(of)
        agreement = _verdict(arm, of) if of else ""
        end, mean = (_cell(rows.get(key), figure) for figure in ("accuracy", "mean_accuracy"))
        text.append(f"| {arm.what} | {arm.claim or '–'} | {end} | {mean} | {less} | {agreement} |")
    return "\n".join(text)


def recipe(rows: Rows) -> str:
    """One switch at a time, compared with the preset that it was changed in."""
    text = [f"## From faithful to recommended, one switch at a time (dial {arms.HEADLINE})", ""]
    text += [f"![differences to what each switch was turned in](images/{RECIPE_PLOT.name})", ""]
    text += [
        (
            "| arm | plain accuracy, end | mean over the budget | mean, less that of what it was"
            " turned in | |"
        ),
        "| --- | --- | --- | --- | --- |",
    ]
    several = [arm for arm in arms.SUITES["recipe"][0] if (arm.name, arms.HEADLINE) in rows]
    pairs = [((arm.name, arms.HEADLINE), (arm.against, arms.HEADLINE)) for arm in several]
    compared = _compared(rows, pairs)
    for arm, pair in zip(several, pairs, strict=True):
        key, less, effect = pair[0], "", ""
        if pair in compared:
            less = _less(compared[pair])
            effect = _said(compared[pair], "helps", "hurts")
        text.append(
            f"| {arm.what} | {_cell(rows.get(key), 'accuracy')} |"
            f" {_cell(rows.get(key), 'mean_accuracy')} | {less} | {effect} |"
        )
    return "\n".join(text)


def account(rows: Rows) -> str:
    """The cost of the runs."""
    every = {tuple(row["overrides"]): row for several in rows.values() for row in several}.values()
    hours = sum(row["cpu_seconds"] for row in every) / 3600
    versions = sorted({f"jax {row['versions']['jax']}" for row in every})
    return (
        f"{len(every)} runs, {hours:.1f} CPU hours besides pretraining the base models;"
        f" {', '.join(versions)}."
    )


def plot_dial(rows: Rows) -> None:
    """Plots accuracy over generated tokens at each dial: means and ranges over seeds."""
    plt = _pyplot()
    several, dials = arms.SUITES["dial"]
    figure, panels = plt.subplots(
        1, len(dials), figsize=(14, 4.4), sharey=True, constrained_layout=True
    )
    grid = [BUDGET * i / 80 for i in range(81)]
    for panel, dial_ in zip(panels, dials, strict=True):
        for arm in several:
            curves = [
                [estimates.at(row["curve"], t) for t in grid]
                for row in rows.get((arm.name, dial_), ())
            ]
            if not curves:
                continue
            columns = list(zip(*curves, strict=True))
            colour, x = COLOURS[arm.name], [t / 1000 for t in grid]
            panel.plot(
                x,
                [sum(c) / len(c) for c in columns],
                color=colour,
                label=arm.what,
                lw=2 if arm.name in ("faithful", "recommended") else 1.3,
            )
            panel.fill_between(
                x,
                [min(c) for c in columns],
                [max(c) for c in columns],
                color=colour,
                alpha=0.12,
                lw=0,
            )
        panel.set(
            title=f"P(chain | plain) = {dial_}",
            xlabel="generated tokens (thousands)",
            ylim=(-0.02, 1.02),
        )
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("plain accuracy, held out")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        frameon=False,
        fontsize=9,
        loc="outside lower center",
        ncols=4,
    )
    figure.savefig(DIAL_PLOT, dpi=110)
    plt.close(figure)


def plot_recipe(rows: Rows) -> None:
    """Plots the difference of each switch to its preset, with its interval."""
    plt = _pyplot()
    differences = []
    for arm in arms.SUITES["recipe"][0]:
        key, own = (arm.name, arms.HEADLINE), (arm.against, arms.HEADLINE)
        if key in rows and own in rows:
            differences.append(
                (arm.what, arm.against, _difference(rows, key, own, "mean_accuracy"))
            )
    if not differences:
        return
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(differences) + 1.6), constrained_layout=True)
    for place, (_, base, d) in enumerate(reversed(differences)):
        axes.plot([d.low, d.high], [place, place], color=COLOURS[base], lw=2)
        axes.plot([d.mean], [place], "o", color=COLOURS[base])
    axes.axvline(0, color="0.5", lw=0.8)
    axes.set_yticks(
        range(len(differences)), [label for label, _, _ in reversed(differences)], fontsize=8
    )
    axes.set_xlabel("mean accuracy over the budget, less that of what the switch was turned in")
    shown = [
        arm
        for arm in (arms.FAITHFUL, arms.BEFORE, arms.RECOMMENDED)
        if any(base == arm.name for _, base, _ in differences)
    ]
    handles = [
        plt.Line2D([], [], color=COLOURS[arm.name], marker="o", label=arm.what) for arm in shown
    ]
    figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside lower center")
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(RECIPE_PLOT, dpi=110)
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _verdict(arm: Arm, compared: tuple[Estimate, int]) -> str:
    if not arm.expected:
        return _said(compared, "better", "worse")
    words = ("yes", "no: the other way round")
    return _said(compared, *(words if arm.expected > 0 else words[::-1]))


def _said(compared: tuple[Estimate, int], positive: str, negative: str) -> str:
    """Words for a difference; "uncorrected" where the correction does not confirm it."""
    difference, sign = compared
    if not difference.sign:
        return "no difference shown"
    return (positive if difference.sign > 0 else negative) + ("" if sign else ", uncorrected")


def _with_mean(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "mean_accuracy": estimates.mean_accuracy(row["curve"], BUDGET)}


def _values(rows: Sequence[Mapping[str, Any]], figure: str) -> list[float]:
    return list(estimates.by_seed(rows, figure).values())


def _difference(
    rows: Rows, ours: tuple[str, str], theirs: tuple[str, str], figure: str
) -> Estimate:
    return estimates.difference(
        estimates.by_seed(rows[ours], figure), estimates.by_seed(rows[theirs], figure)
    )


Pair = tuple[tuple[str, str], tuple[str, str]]  # two arms, each with its dial


def _compared(rows: Rows, pairs: Sequence[Pair]) -> dict[Pair, tuple[Estimate, int]]:
    """The difference of each pair that has rows, and its sign among those of the table."""
    there = [pair for pair in pairs if rows.get(pair[0]) and rows.get(pair[1])]
    differences = [_difference(rows, *pair, "mean_accuracy") for pair in there]
    return dict(
        zip(there, zip(differences, estimates.signs(differences), strict=True), strict=True)
    )


def _less(compared: tuple[Estimate, int] | None) -> str:
    if compared is None:
        return "–"
    d, sign = compared
    text = f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
    return f"**{text}**" if sign else text


def _cell(rows: Sequence[Mapping[str, Any]] | None, figure: str) -> str:
    if not rows:
        return "–"
    e = estimates.estimate(_values(rows, figure))
    return f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}] ({e.n})"


def _range(values: Sequence[float]) -> str:
    distinct = sorted(set(values))
    return (
        "–"
        if not distinct
        else f"{distinct[0]:.1e}"
        if len(distinct) == 1
        else f"{distinct[0]:.1e} to {distinct[-1]:.1e}"
    )
