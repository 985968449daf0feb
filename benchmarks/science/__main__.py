"""Runs experiments: `python -m benchmarks.science --suite NAME [--seeds 5]`.

Runs everything that has no row yet; `--report` tabulates.

Rows go to benchmarks/science/results.jsonl (`--results FILE`), which is part of the repository.
`--report yes` writes the tables and plots of docs/results.md from it. After a kill, the same
command continues. `--show ARM` prints the commands of an arm's runs. `--redo ARM` repeats them and
compares the results (`--seeds 1`: the first seed alone).
"""

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.science import arms, run, teacher
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command

COMMAND_LINE = CommandLine(
    "benchmarks.science",
    __doc__,
    Flag("suite", "Suite of runs", "all", choices=(*arms.SUITES, "all")),
    Flag("seeds", "Seeds per arm", 5, kind=int, within=COUNT),
    Flag("at-a-time", "Runs at a time", 2, kind=int, within=COUNT),
    Flag("results", "File of rows", str(run.RESULTS), metavar="FILE"),
    Flag("report", "Write the tables and plots instead", False, kind=bool),
    Flag("show", "Print the commands of this arm's runs instead", metavar="ARM"),
    Flag("redo", "Repeat the runs of this arm and compare results instead", metavar="ARM"),
    settings=False,
)


def main(argv: Sequence[str]) -> None:
    """Runs, shows or reports.

    Raises:
        ConfigError: the flags are invalid, or a run failed.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    suites = list(arms.SUITES) if flags["suite"] == "all" else [flags["suite"]]
    wanted = [r for suite in suites for r in arms.runs(suite, flags["seeds"])]
    results = Path(flags["results"])
    if flags["show"]:
        for r in {r.overrides: r for r in wanted if r.arm.name == flags["show"]}.values():
            print(" ".join(run.command(r, f"runs/science/{r.arm.name}-{r.dial}-{r.seed}")))
        return
    if flags["report"]:
        from benchmarks.science import report

        report.write(results)
        return
    if flags["redo"]:
        with teacher.serving(arms.TEACHER_PORT):
            run.redo(
                {r.overrides: r for r in wanted if r.arm.name == flags["redo"]}.values(), results
            )
        return
    left = run.pending(wanted, results)
    print(f"{len(left)} runs to make", flush=True)
    with teacher.serving(arms.TEACHER_PORT):
        run.run_all(left, results, min(flags["at-a-time"], len(os.sched_getaffinity(0))))


if __name__ == "__main__":
    command(main)
