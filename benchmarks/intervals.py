"""Coverage of the intervals of evaluations: `python -m benchmarks.intervals [--draws N]`.

Simulates evaluations of 30 questions with 1 and with 16 samples each, and reports how often the
95 % interval holds the true mean, or the true difference of two runs on the same questions. The
chances of the questions to be answered right come from several models, because an evaluation does
not know how alike its questions are. With 1 sample a mean's coverage is exact: it depends on the
mean only. The tables go to standard error.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import betaincinv
from scipy.stats import binom

from benchmarks import report
from benchmarks.report import Target
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.evaluation import intervals
from p2o_jax.main import command

QUESTIONS = 30
MEANS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
PAIRS = ((0.03, 0.0), (0.03, 0.1), (0.1, 0.0), (0.1, 0.1), (0.3, 0.0), (0.3, 0.1), (0.3, 0.2))
PAIRS += ((0.5, 0.0), (0.5, 0.1), (0.5, 0.2), (0.7, 0.0), (0.7, 0.1), (0.9, 0.0), (0.9, 0.05))
# Of Beta(mean M, (1 - mean) M); infinity: all questions have the same chance, 0: each is always or
# never answered right.
ALIKE = {"same": np.inf, "M = 10": 10.0, "M = 2": 2.0, "M = 0.5": 0.5, "always or never": 0.0}
PAIR_MODELS = ("same", "shared, M = 10", "shared, M = 2", "shared, M = 0.5", "unrelated, M = 2")
PAIR_MODELS += ("1 in 5 redrawn", "few solved")
TARGETS = {
    "no interval of a mean is too narrow": Target("least_of_means", ">=", 0.92),
    "nor of a difference, but where few questions are solved": Target(
        "least_of_differences", ">=", 0.92
    ),
}
COMMAND_LINE = CommandLine(
    "benchmarks.intervals",
    __doc__,
    Flag("draws", "Simulated evaluations for each figure", 2000, kind=int, within=COUNT),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Prints the tables and the JSON line."""
    flags, _ = COMMAND_LINE.parse(argv)
    draws, rng = flags["draws"], np.random.default_rng(0)
    means = {
        str(mean): {"1 sample": share_coverage(mean)}
        | {model: mean_coverage(mean, model, 16, draws, rng) for model in ALIKE}
        for mean in MEANS
    }
    pairs = {
        samples: {
            f"{mean} + {difference}": {
                model: pair_coverage(mean, difference, model, samples, draws, rng)
                for model in PAIR_MODELS
            }
            for mean, difference in PAIRS
        }
        for samples in (1, 16)
    }
    for title, rows in (
        ("mean, 16 samples", means),
        ("difference, 1 sample", pairs[1]),
        ("difference, 16 samples", pairs[16]),
    ):
        print(table(title, rows), file=sys.stderr)
    figures = {"draws": draws, "means": means, "differences": pairs}
    figures["least_of_means"] = min(v for row in means.values() for v in row.values())
    figures["least_of_differences"] = min(
        v
        for rows in pairs.values()
        for row in rows.values()
        for model, v in row.items()
        if model != "few solved"
    )
    report.finish("intervals", figures, TARGETS)


def share_coverage(mean: float) -> float:
    """The exact coverage with one sample of each question."""
    right = np.arange(QUESTIONS + 1)
    solved_RQ = (np.arange(QUESTIONS) < right[:, None]).astype(float)
    low_R, high_R = intervals.limits_of_mean(solved_RQ, 1)
    covers = (low_R <= mean) & (mean <= high_R)
    return float(binom.pmf(right, QUESTIONS, mean)[covers].sum())


def mean_coverage(
    mean: float, model: str, samples: int, draws: int, rng: np.random.Generator
) -> float:
    """The share of simulated evaluations whose interval holds the mean.

    Args:
        mean: of the chances of all questions of the kind.
        model: how they are spread, in ALIKE.
        samples: of each question.
        draws: simulated evaluations.
        rng: of all of them.
    """
    chance_RQ = _chances(mean, ALIKE[model], rng.random((draws, QUESTIONS)))
    low_R, high_R = intervals.limits_of_mean(rng.binomial(samples, chance_RQ) / samples, samples)
    return float(np.mean((low_R <= mean) & (mean <= high_R)))


def pair_coverage(
    mean: float, difference: float, model: str, samples: int, draws: int, rng: np.random.Generator
) -> float:
    """The share of simulated pairs of runs whose interval holds the difference of their means.

    "shared": a question has the same rank of difficulty for both; "unrelated": it has not; "1 in 5
    redrawn": each question is always or never answered right, by both alike but for one in five;
    "few solved": both have the same chances (M = 1), but for some questions that the second run
    always solves.

    Args:
        mean: of the first run.
        difference: second run minus first.
        model: in PAIR_MODELS.
        samples: of each question.
        draws: simulated pairs.
        rng: of all of them.
    """
    rank_RQ = rng.random((draws, QUESTIONS))
    other_RQ = rng.random((draws, QUESTIONS))
    kind, _, alike = model.partition(", M = ")
    spread = float(alike or {"same": np.inf, "1 in 5 redrawn": 0}.get(kind, 1))
    a_RQ = _chances(mean, spread, rank_RQ)
    if kind == "few solved":
        b_RQ = np.where(other_RQ < difference / (1 - mean), 1.0, a_RQ)
    else:
        kept = kind != "unrelated" and (
            kind != "1 in 5 redrawn" or rng.random((draws, QUESTIONS)) < 0.8
        )
        b_RQ = _chances(mean + difference, spread, np.where(kept, rank_RQ, other_RQ))
    a_RQ, b_RQ = (rng.binomial(samples, chance_RQ) / samples for chance_RQ in (a_RQ, b_RQ))
    low_R, high_R = intervals.limits_of_difference(a_RQ, b_RQ, samples, samples)
    off = 1e-9  # a difference of shares is not exact
    return float(np.mean((low_R <= difference + off) & (difference - off <= high_R)))


def _chances(mean: float, alike: float, rank_RQ: np.ndarray) -> np.ndarray:
    """The chances of questions of these ranks in [0, 1], from the easiest."""
    if alike == np.inf:
        return np.full_like(rank_RQ, mean)
    if alike == 0:
        return (rank_RQ < mean).astype(float)
    return betaincinv(mean * alike, (1 - mean) * alike, 1 - rank_RQ)


def table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Coverage as Markdown."""
    names = list(next(iter(rows.values())))
    lines = [f"| {title} | {' | '.join(names)} |", "|" + " --- |" * (len(names) + 1)]
    lines += [f"| {row} | {' | '.join(f'{v:.3f}' for v in rows[row].values())} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command(run)
