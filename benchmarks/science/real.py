"""Arms on a real model: `python -m benchmarks.science.real [--seeds 3] [--report yes]`.

First the tasks are probed (p2o_jax.probe). Then examples/laptop is run, SmolLM2-135M-Instruct on 64
short questions, once per arm and seed, the first seed of every arm first. Rows go to
benchmarks/science/real.jsonl; what has a row is not run again. `--report yes` writes the tables of
docs/results.md from the rows.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import call
from benchmarks.science import neutral_text, real_report, run_figures, supervised, tasks
from benchmarks.science.real_arms import ARMS, Arm
from examples.laptop import smollm2
from p2o_jax import types
from p2o_jax.config import ConfigError
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command
from p2o_jax.tracking.record_rows import read_strict

RESULTS = Path(__file__).with_name("real.jsonl")
MODEL = "smollm2-135m-instruct"
COMMAND_LINE = CommandLine(
    "benchmarks.science.real",
    __doc__,
    Flag("seeds", "Seeds per arm", 3, kind=int, within=COUNT),
    Flag("arms", "Arms to run; all if it is not given", several=True, metavar="NAME"),
    Flag("data", "Folder of the questions and the model", ".cache/laptop", metavar="DIR"),
    Flag("report", "Write the tables instead", False, kind=bool),
    settings=False,
)


def main(argv: Sequence[str]) -> None:
    """Makes the missing rows, or writes the tables.

    Raises:
        ConfigError: the flags are invalid, or a run failed.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    rows = read_strict(RESULTS)
    if flags["report"]:
        real_report.write(rows)
        return
    known = {(row["arm"], row["seed"]) for row in rows if "arm" in row}
    arms = [arm for arm in ARMS if not flags["arms"] or arm.name in flags["arms"]]
    left = [
        (arm, seed)
        for seed in range(flags["seeds"])
        for arm in arms
        if (arm.name, seed) not in known
    ]
    data = Path(flags["data"])
    smollm2.ensure(data / MODEL)
    probed = {row["probe"] for row in rows if "probe" in row}
    for task in dict.fromkeys(arm.task for arm, _ in left if arm.task not in probed):
        row = probe(tasks.TASKS[task], data)
        _add(row)
        print(f"{task}: {row['verdict']}", flush=True)
    for number, (arm, seed) in enumerate(left, start=1):
        row = (make_supervised if arm.supervised else make)(arm, seed, data)
        _add(row)
        print(
            f"{number}/{len(left)}  {arm.name}, seed {seed}: {row['accuracy']:.3f} after"
            f" {row['generated_tokens']:,.0f} tokens, {row['seconds']:.0f} s",
            flush=True,
        )


def _add(row: Mapping[str, Any]) -> None:
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def probe(task: tasks.Task, data: Path) -> dict[str, Any]:
    """What p2o_jax.probe says of a task before training: success of the plain prompt and of the
    best template at the training temperature, and the verdict.
    """
    settings = {**tasks.like_training(tasks.SAMPLING), **tasks.write(task, data / task.name)}
    templates = settings.pop("gepa.seed_templates", "examples/laptop/templates.txt")
    questions = settings.pop("data.path")
    del settings["data.eval_path"]
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        call(
            "p2o_jax.probe",
            *(f"--model={data / MODEL}", f"--data={questions}"),
            *(f"--templates={templates}", f"--out={folder}"),
            *(f"--config.{key}={value}" for key, value in settings.items()),
        )
        said = json.loads((Path(folder) / "probe.json").read_text(encoding="utf-8"))
    plain, *others = said["prompts"]
    best = max(others, key=lambda of: of["sampled"]["mean"])
    kept = ("template", "sampled", "greedy", "mixed", "rescued")
    return {
        "probe": task.name,
        "plain": {name: plain[name] for name in kept},
        "best": {name: best[name] for name in kept},
        "questions": plain["questions"],
        "per_question": plain["per_question"],
        "verdict": said["verdict"],
    }


def make(arm: Arm, seed: int, data: Path) -> dict[str, Any]:
    """The row of an arm's run with a seed.

    Raises:
        ConfigError: the run failed; with the end of its output.
    """
    settings = {
        "model.path": data / MODEL,
        **tasks.write(tasks.TASKS[arm.task], data / arm.task),
        "arms": "()",
        "train.seed": seed,
        "checkpoint.every_steps": 100,
        **arm.settings,
    }
    with tempfile.TemporaryDirectory(prefix="real-") as folder:
        run, trained = Path(folder) / "run", Path(folder) / "model"
        overrides = (f"--config.{key}={value}" for key, value in settings.items())
        own = ("--config=examples/laptop/config.py", f"--workdir={run}", *overrides)
        usage = call("p2o_jax.main", *own)
        if not (run / "result.json").exists():  # after SIGTERM a run leaves with exit code 0
            raise ConfigError(f"{arm.name}, seed {seed}: left before its end")
        call("p2o_jax.export", f"--workdir={run}", f"--out={trained}", "--dtype=float32")
        nll = [neutral_text.nll(model) for model in (data / MODEL, trained)]
        return figures(run) | {
            "neutral_nll": [round(value, 4) for value in nll],
            "arm": arm.name,
            "seed": seed,
            "settings": dict(arm.settings),
            **usage._asdict(),
        }


def make_supervised(arm: Arm, seed: int, data: Path) -> dict[str, Any]:
    """The row of a run of the supervised control with a seed.

    Raises:
        ConfigError: a command failed; with the end of its output.
    """
    task = tasks.TASKS[arm.task]
    row = supervised.make(task, seed, data / MODEL, data / task.name)
    return row | {"arm": arm.name, "seed": seed, "settings": {}}


def figures(run: Path) -> dict[str, Any]:
    """The recorded figures of a finished run; runs with equal digests are equal bit for bit."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    versions = json.loads((run / "versions.json").read_text(encoding="utf-8"))
    metrics = read_strict(run / "metrics.jsonl")
    evaluations = read_strict(run / "evaluations.jsonl")
    curve = [[row["generated_tokens"], row["accuracy"]] for row in evaluations]
    losses = [row["train/loss"] for row in metrics if "train/loss" in row]
    return {
        "accuracy": result["accuracy"],
        "by_family": result["by_family"],
        "curve": curve,
        "other_sets": run_figures.other_sets(evaluations),
        "generated_tokens": result["generated_tokens"],
        "seconds": result["seconds"],
        "frac_right_masked": run_figures.frac_right_masked(metrics),
        "digest": types.digest(json.dumps([losses, curve])),
        "versions": {name: versions[name] for name in ("jax", "jaxlib")},
    }


if __name__ == "__main__":
    command(main)
