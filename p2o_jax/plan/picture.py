"""Draws the memory of a chip: a bar per program, divided by kind, and the chip's limit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2o_jax.plan.report import COLUMNS


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Writes a picture of a plan's memory in any format of matplotlib (.svg, .png, …)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = figures["memory_gib"][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(rows) + 1.5), layout="constrained")
    left = [0.0] * len(rows)
    for kind in COLUMNS:
        sizes = [row[kind] for row in rows]
        if any(sizes):
            axes.barh([row["program"] for row in rows], sizes, left=left, label=kind)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axes.axvline(figures["limit_gib"], color="black", linestyle="--", label="a chip's memory")
    axes.set_xlabel("GiB on a chip")
    axes.set_title(f"{figures['model']} on {figures['topology']}")
    axes.legend(fontsize="small")
    figure.savefig(path)
    pyplot.close(figure)
