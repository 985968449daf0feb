"""Arms on a real model: `python -m benchmarks.science.real [--seeds 3] [--report yes]`.

Runs examples/laptop's task, SmolLM2-135M-Instruct on 64 short questions, once per arm and seed, the
first seed of every arm first. Rows go to benchmarks/science/real.jsonl; what has a row is not run
again. `--report yes` writes the table of docs/results.md from the rows.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.science import estimates, report
from examples.laptop import questions, smollm2
from p2o_jax import types
from p2o_jax.config import ConfigError
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command
from p2o_jax.runtime import files
from p2o_jax.tracking.record_rows import read_strict

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("real.jsonl")
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = (
    "<!-- real: written by python -m benchmarks.science.real --report yes -->",
    "<!-- /real -->",
)
BUDGET = 24_000.0
ASK = r"{question} Put the answer in \boxed{}."
COMMAND_LINE = CommandLine(
    "benchmarks.science.real",
    __doc__,
    Flag("seeds", "Seeds per arm", 3, kind=int, within=COUNT),
    Flag("arms", "Arms to run; all if it is not given", several=True, metavar="NAME"),
    Flag("data", "Folder of the questions and the model", ".cache/laptop", metavar="DIR"),
    Flag("report", "Write the table instead", False, kind=bool),
    settings=False,
)


class Arm(NamedTuple):
    """Settings over examples/laptop's P²O."""

    name: str
    what: str
    settings: Mapping[str, str] = {}


ARMS = (
    Arm("grpo", "GRPO", {"gepa.enabled": "false"}),
    Arm("p2o", "P²O, recommended (no mask: `distill.eps_low=1`)"),
    Arm("mask", "P²O with the paper's mask (`distill.eps_low=.99`)", {"distill.eps_low": "0.99"}),
    Arm(
        "asked",
        r"GRPO, each question followed by “Put the answer in \boxed{}.”",
        {"gepa.enabled": "false", "data.prompt_template": ASK},
    ),
    Arm("weaker", "P²O with a weaker mask (`distill.eps_low=.9995`)", {"distill.eps_low": ".9995"}),
    Arm(
        "soft",
        "P²O, the paper's mask as a soft clip (`distill.clip=soft`, `eps_low=.99`)",
        {"distill.clip": "soft", "distill.eps_low": "0.99"},
    ),
    Arm("importance", "P²O, importance weights", {"distill.mode": "importance"}),
    Arm("truncated", "P²O, truncated weights", {"distill.mode": "truncated"}),
    Arm("off", "P²O, trained under the templates (`distill.mode=off`)", {"distill.mode": "off"}),
)


def main(argv: Sequence[str]) -> None:
    """Makes the missing runs, or writes the table.

    Raises:
        ConfigError: the flags are invalid, or a run failed.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    rows = read_strict(RESULTS)
    if flags["report"]:
        write(rows)
        return
    known = {(row["arm"], row["seed"]) for row in rows}
    arms = [arm for arm in ARMS if not flags["arms"] or arm.name in flags["arms"]]
    left = [
        (arm, seed)
        for seed in range(flags["seeds"])
        for arm in arms
        if (arm.name, seed) not in known
    ]
    data = Path(flags["data"])
    smollm2.ensure(data / "smollm2-135m-instruct")
    questions.write(data)
    for number, (arm, seed) in enumerate(left, start=1):
        row = make(arm, seed, data)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{number}/{len(left)}  {arm.name}, seed {seed}: {row['accuracy']:.3f} after"
            f" {row['generated_tokens']:,.0f} tokens, {row['seconds']:.0f} s",
            flush=True,
        )


def make(arm: Arm, seed: int, data: Path) -> dict[str, Any]:
    """The row of an arm's run with a seed.

    Raises:
        ConfigError: the run failed; with the end of its output.
    """
    settings = {
        "model.path": data / "smollm2-135m-instruct",
        "data.path": data / "train.jsonl",
        "data.eval_path": data / "heldout.jsonl",
        "arms": "()",
        "train.seed": seed,
        "checkpoint.every_steps": 100,
        **arm.settings,
    }
    words = [
        *(sys.executable, "-m", "p2o_jax.main", "--config=examples/laptop/config.py"),
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]
    with tempfile.TemporaryDirectory(prefix="real-") as folder:
        run = Path(folder) / "run"
        with (Path(folder) / "output").open("w+") as output:
            child = subprocess.Popen(
                [*words, f"--workdir={run}"], cwd=ROOT, stdout=output, stderr=output
            )
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            # after SIGTERM a run leaves with exit code 0
            if child.returncode or not (run / "result.json").exists():
                output.seek(0)
                raise ConfigError(f"{arm.name}, seed {seed}: {output.read()[-1500:]}")
        return figures(run) | {
            "arm": arm.name,
            "seed": seed,
            "settings": dict(arm.settings),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
            "peak_gib": round(usage.ru_maxrss / 2**20, 2),
        }


def figures(run: Path) -> dict[str, Any]:
    """The recorded figures of a finished run; runs with equal digests are equal bit for bit."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    versions = json.loads((run / "versions.json").read_text(encoding="utf-8"))
    metrics = read_strict(run / "metrics.jsonl")
    curve = [
        [row["generated_tokens"], row["accuracy"]] for row in read_strict(run / "evaluations.jsonl")
    ]
    losses = [row["train/loss"] for row in metrics if "train/loss" in row]
    name = "distill/frac_right_masked"
    masked = [row[name] for row in metrics if name in row]
    return {
        "accuracy": result["accuracy"],
        "by_family": result["by_family"],
        "curve": curve,
        "generated_tokens": result["generated_tokens"],
        "seconds": result["seconds"],
        "frac_right_masked": round(sum(masked) / len(masked), 4) if masked else None,
        "digest": types.digest(json.dumps([losses, curve])),
        "versions": {name: versions[name] for name in ("jax", "jaxlib")},
    }


def write(rows: Sequence[Mapping[str, Any]], page: Path = PAGE) -> None:
    """Writes the table between the page's markers.

    Raises:
        ConfigError: the page has no markers.
    """
    before, after = report.around(page, BEGIN, END)
    files.write_whole(page, f"{before}\n\n{table(rows)}\n\n{after}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per arm: accuracy of each seed at the end, its mean over the budget, the difference
    from GRPO with the same seeds, and what a run takes.
    """
    lines = [
        "| arm | accuracy of each seed | mean accuracy over the budget | less GRPO [95 %] |"
        " tokens of right templated responses masked | generated tokens | seconds |"
        " peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    by_arm = {
        arm.name: sorted((r for r in rows if r["arm"] == arm.name), key=lambda r: r["seed"])
        for arm in ARMS
    }
    base = _mean_accuracies(by_arm["grpo"])
    for arm in ARMS:
        own = by_arm[arm.name]
        if not own:
            continue
        means = _mean_accuracies(own)
        masked = [row["frac_right_masked"] for row in own if row["frac_right_masked"] is not None]
        cells = [
            arm.what,
            ", ".join(f"{row['accuracy']:.3f}" for row in own),
            f"{_mean(list(means.values())):.3f}",
            _less(means, base) if arm.name != "grpo" else "",
            f"{_mean(masked):.1%}" if masked else "",
            f"{_mean([row['generated_tokens'] for row in own]):,.0f}",
            f"{_mean([row['seconds'] for row in own]):.0f}",
            f"{max(row['peak_gib'] for row in own):.1f} GiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_accuracies(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    return {row["seed"]: estimates.mean_accuracy(row["curve"], BUDGET) for row in rows}


def _less(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return ""
    mean, low, high = estimates.t_interval([ours[seed] - theirs[seed] for seed in seeds])
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    command(main)
