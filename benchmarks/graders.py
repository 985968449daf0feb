"""Accuracy of both graders: `python -m benchmarks.graders [--pairs FILE.tsv]`.

Reports how often each grader is right, by kind of answer, how often they agree, and every pair that
one of them gets wrong. The table goes to standard error.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Target
from p2o_jax import config
from p2o_jax.config import ConfigError
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.main import command
from p2o_jax.rewards.lenient import LenientGrader
from p2o_jax.rewards.verify import Verifier

TARGETS = {"strict grader": Target("frac_strict_right", ">=", 0.99)}
COLUMNS = ["kind", "verdict", "reference", "answer"]
COMMAND_LINE = CommandLine(
    "benchmarks.graders",
    __doc__,
    Flag(
        "pairs",
        "Tab-separated file of graded pairs",
        str(Path(__file__).parents[1] / "tests" / "rewards" / "graded_pairs.tsv"),
        metavar="FILE.tsv",
    ),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Prints the table and the JSON line.

    Raises:
        ConfigError: the flags are invalid, or there are no pairs.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    pairs = read(Path(flags["pairs"]))
    figures = judge(pairs)
    print(table(figures), file=sys.stderr)
    report.finish("graders", figures, TARGETS)


def read(path: Path) -> list[dict[str, str]]:
    """Reads pairs from a tab-separated file: kind, verdict (right or wrong), reference, answer."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            pairs = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError as e:
        raise ConfigError(f"--pairs={path}: {e.strerror}") from e
    if (
        not pairs
        or list(pairs[0]) != COLUMNS
        or any(p["verdict"] not in ("right", "wrong") for p in pairs)
    ):
        raise ConfigError(
            f"--pairs={path}: expected the columns {', '.join(COLUMNS)}, a verdict being right or"
            " wrong"
        )
    return pairs


def judge(pairs: Sequence[dict[str, str]]) -> dict[str, Any]:
    """The accuracy of the graders, and the pairs that they get wrong."""
    cfg = config.RewardConfig(timeout_s=20.0)
    responses, references = (
        [rf"\boxed{{{p['answer']}}}" for p in pairs],
        [p["reference"] for p in pairs],
    )
    with Verifier(cfg) as verifier, LenientGrader(cfg) as lenient:
        strict = [v.status == "correct" for v in verifier.verify(responses, references)]
        loose = [g.status == "correct" for g in lenient.grade(responses, references)]
    truth = [p["verdict"] == "right" for p in pairs]
    kinds: dict[str, dict[str, int]] = {}
    for p, t, s, n in zip(pairs, truth, strict, loose, strict=True):
        row = kinds.setdefault(p["kind"], {"pairs": 0, "strict": 0, "lenient": 0, "agree": 0})
        for name, amount in (
            ("pairs", 1),
            ("strict", s == t),
            ("lenient", n == t),
            ("agree", s == n),
        ):
            row[name] += amount
    both = {"strict": strict, "lenient": loose}
    misses = {
        g: [
            [p["reference"], p["answer"], p["verdict"]]
            for p, t, v in zip(pairs, truth, vs, strict=True)
            if v != t
        ]
        for g, vs in both.items()
    }
    return {
        "pairs": len(pairs),
        "frac_strict_right": round(1 - len(misses["strict"]) / len(pairs), 4),
        "frac_lenient_right": round(1 - len(misses["lenient"]) / len(pairs), 4),
        "frac_agree": round(sum(row["agree"] for row in kinds.values()) / len(pairs), 4),
        "by_kind": kinds,
        "misses": misses,
    }


def table(figures: dict[str, Any]) -> str:
    """The figures by kind as Markdown."""
    lines = [
        "| kind | pairs | strict right | lenient right | agree |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {kind} | {r['pairs']} | {r['strict']} | {r['lenient']} | {r['agree']} |"
        for kind, r in figures["by_kind"].items()
    ]
    total = {
        name: sum(row[name] for row in figures["by_kind"].values())
        for name in ("pairs", "strict", "lenient", "agree")
    }
    return "\n".join(
        [
            *lines,
            (
                f"| **all** | {total['pairs']} | {total['strict']} | {total['lenient']} |"
                f" {total['agree']} |"
            ),
        ]
    )


if __name__ == "__main__":
    command(run)
