"""The tables and plots of docs/results.md, computed from the rows of the results alone."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.science import arms, estimates, medium_report, tables
from benchmarks.science.tables import Rows
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
COLOURS = {
    "grpo": "C0",
    "grpo-16": "C9",
    "grpo-extra": "C2",
    "dapo": "C5",
    "faithful": "C1",
    "every-epoch": "C6",
    "recommended": "C3",
}


def write(results: Path) -> None:
    """Writes the part of docs/results.md between its markers, and the plots.

    Raises:
        ConfigError: the page has no markers, or there are no rows.
    """
    rows, (before, after) = tables.read(results), around(PAGE, BEGIN, END)
    written = "\n\n".join(
        section
        for section in (
            dial(rows),
            paper(rows),
            recipe(rows),
            medium_report.medium(rows),
            medium_report.elsewhere(rows),
            account(rows),
        )
        if section
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


def dial(rows: Rows) -> str:
    """Final and mean accuracy of each arm at each dial, and where P²O is ahead."""
    several, dials, *_ = arms.SUITES["dial"]
    text = ["## The dial: when does P²O help?", ""]
    text += [f"![accuracy over generated tokens at four dials](images/{DIAL_PLOT.name})", ""]
    measured = " | ".join(
        tables.span(
            [row["p_chain_plain"] for arm in several for row in rows.get((arm.name, d), ())]
        )
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
            cells = (tables.cell(rows.get((arm.name, d)), figure) for d in dials)
            text.append(f"| {arm.what} | " + " | ".join(cells) + " |")
        text.append("")
    text += [
        (
            "P²O (recommended) less the better of the GRPO arms, less P²O with a whole search in"
            " every epoch, and less P²O as released, on average over the budget, paired by seed:"
        ),
        "",
    ]
    text += [head[0], head[1]]
    for title, others in (
        ("less the best GRPO arm", ("grpo", "grpo-16", "grpo-extra", "dapo")),
        ("less a whole search in every epoch", ("every-epoch",)),
        ("less P²O as released", ("faithful",)),
    ):
        pairs = []
        for d in dials:
            there = [name for name in others if rows.get((name, d))]
            means = {
                name: statistics.mean(tables.values(rows[name, d], "mean_accuracy"))
                for name in there
            }
            best = max(there, key=means.__getitem__, default="")
            pairs.append((("recommended", d), (best, d)))
        compared = tables.compared(rows, pairs)
        cells = (
            tables.less(compared.get(pair))
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
    several = arms.PAPER
    pairs = {arm.name: ((arm.name, arms.HEADLINE), base) for arm in several}
    del pairs[base[0]]
    compared = tables.compared(rows, list(pairs.values()))
    for arm in several:
        key = arm.name, arms.HEADLINE
        of = compared.get((key, base))
        less = "" if key == base else tables.less(of)
        agreement = tables.verdict(arm, of) if of else ""
        end, mean = (tables.cell(rows.get(key), figure) for figure in ("accuracy", "mean_accuracy"))
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
    several = [arm for arm in arms.RECIPE if (arm.name, arms.HEADLINE) in rows]
    pairs = [((arm.name, arms.HEADLINE), (arm.against, arms.HEADLINE)) for arm in several]
    compared = tables.compared(rows, pairs)
    for arm, pair in zip(several, pairs, strict=True):
        key, less, effect = pair[0], "", ""
        if pair in compared:
            less = tables.less(compared[pair])
            effect = tables.said(compared[pair], "helps", "hurts")
        text.append(
            f"| {arm.what} | {tables.cell(rows.get(key), 'accuracy')} |"
            f" {tables.cell(rows.get(key), 'mean_accuracy')} | {less} | {effect} |"
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
    several, dials, *_ = arms.SUITES["dial"]
    figure, panels = plt.subplots(
        1, len(dials), figsize=(14, 4.4), sharey=True, constrained_layout=True
    )
    grid = [tables.BUDGET * i / 80 for i in range(81)]
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
    for arm in arms.RECIPE:
        key, own = (arm.name, arms.HEADLINE), (arm.against, arms.HEADLINE)
        if key in rows and own in rows:
            differences.append(
                (arm.what, arm.against, tables.difference(rows, key, own, "mean_accuracy"))
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
        for arm in (arms.FAITHFUL, arms.RECOMMENDED)
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
