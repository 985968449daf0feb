"""Figures that rows of all suites have."""

from collections.abc import Mapping, Sequence
from typing import Any


def other_sets(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Accuracy on each of several held-out sets before and after training; empty with one set."""
    return {
        name: [row["sets"][name]["accuracy"] for row in (evaluations[0], evaluations[-1])]
        for name in evaluations[-1].get("sets", {})
    }


def frac_right_masked(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean over steps of the fraction of right templated responses' tokens that the update
    leaves out; None if there is none.
    """
    name = "distill/frac_right_masked"
    masked = [row[name] for row in metrics if name in row]
    return round(sum(masked) / len(masked), 4) if masked else None
