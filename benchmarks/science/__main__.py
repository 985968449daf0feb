"""Runs experiments: `python -m benchmarks.science --suite dial|paper|recipe [--seeds 5]`.

Further flags: [--at-a-time 2]. Runs everything that has no row yet; `--report` tabulates.

Rows go to benchmarks/science/results.jsonl (`--results FILE`), which is part of the repository.
`--report yes` writes the tables and plots of docs/results.md from it. After a kill, the same
command continues. `--show ARM` prints the commands of an arm's runs. `--redo ARM` repeats them and
compares the results (`--seeds 1`: the first seed alone).
"""

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.science import arms, run, teacher
from p2o_jax.config import ConfigError, loading
from p2o_jax.main import command


def main(argv: Sequence[str]) -> None:
    """Runs, shows or reports.

    Raises:
        ConfigError: the flags are invalid, or a run failed.
    """
    flags, overrides = loading.parse_flags(
        argv,
        {
            "suite": "all",
            "seeds": "5",
            "at-a-time": "2",
            "results": str(run.RESULTS),
            "report": "no",
            "show": "",
            "redo": "",
        },
    )
    problems = [
        f"--{name}={flags[name]}: expected a positive number"
        for name in ("seeds", "at-a-time")
        if not flags[name].isdigit()
    ]
    suites = list(arms.SUITES) if flags["suite"] == "all" else [flags["suite"]]
    if suites[0] not in arms.SUITES:
        problems.append(
            f"--suite={flags['suite']}: expected one of {', '.join(arms.SUITES)} or all"
        )
    if overrides:
        problems.append(
            f"--config.{overrides[0][0]}: arms have their own settings (benchmarks/science/arms.py)"
        )
    if problems:
        raise ConfigError(*problems)
    wanted = [r for suite in suites for r in arms.runs(suite, int(flags["seeds"]))]
    results = Path(flags["results"])
    if flags["show"]:
        for r in {r.overrides: r for r in wanted if r.arm.name == flags["show"]}.values():
            print(" ".join(run.command(r, f"runs/science/{r.arm.name}-{r.dial}-{r.seed}")))
        return
    if flags["report"] != "no":
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
        run.run_all(left, results, min(int(flags["at-a-time"]), len(os.sched_getaffinity(0))))


if __name__ == "__main__":
    command(main)
