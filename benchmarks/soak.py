"""A long run of a very small model, to detect growth: `python -m benchmarks.soak [--steps 2000]`.

The run has policy steps, with a prompt phase, an evaluation and checkpoints every 50 steps.
Resident memory, open files and threads are read from /proc (Linux) once a second, and compilations
from the run's metrics. The second and the last quarter of the steps are compared.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import report
from benchmarks.report import Target
from p2o_jax.config import ConfigError
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command
from p2o_jax.tracking.record_rows import read_strict

ROOT = Path(__file__).parent.parent
STEPS_PER_EPOCH = 50
SETTINGS = {
    "world.hard_per_family": 20,
    "world.easy_per_family": 10,
    "world.heldout_per_family": 4,
    "loss.entropy_coef": 0.01,
    "rollout.questions": 2,
    "rollout.group_size": 4,
    "rollout.slots": 16,
    "rollout.min_slots": 8,
    "optim.minibatch_questions": 2,
    "gepa.min_hard": 4,
    "gepa.max_metric_calls": 60,
    "gepa.acceptance": "margin",
    "gepa.acceptance_margin": 0,
    "gepa.temperature": 1.0,
    "gepa.filter_replies": "false",
    "eval.every_steps": 50,
    "checkpoint.every_steps": 25,
}
TARGETS = {
    "memory is flat": Target("rss_growth", "<=", 0.02),
    "no file stays open": Target("files_growth", "<=", 0),
    "no thread stays": Target("threads_growth", "<=", 0),
    "nothing compiles after two epochs": Target("late_compiles", "<=", 0),
}


class Sample(NamedTuple):
    """The state of the run's process at one time."""

    step: int
    rss_bytes: int
    files: int
    threads: int


COMMAND_LINE = CommandLine(
    "benchmarks.soak",
    __doc__,
    Flag("steps", "Policy steps", 2000, kind=int, within=COUNT),
    Flag("folder", "Empty folder to keep the run in (default: a temporary one)", metavar="DIR"),
)


def run(argv: Sequence[str]) -> None:
    """Runs and reports.

    Raises:
        ConfigError: the flags are invalid, /proc is missing, or the run fails.
    """
    flags, overrides = COMMAND_LINE.parse(argv)
    if not Path("/proc/self/statm").exists():
        raise ConfigError("benchmarks.soak: needs /proc")
    with tempfile.TemporaryDirectory() as temporary:
        folder = report.own_folder(flags["folder"], temporary)
        epochs = max(flags["steps"] // STEPS_PER_EPOCH, 4)
        settings = {
            **SETTINGS,
            "train.epochs": epochs,
            "world.cache_dir": folder / "world",
            "train.compile_cache": "",
            **dict(overrides),
        }
        samples, seconds = watched(folder / "run", settings)
        figures = figures_of(
            samples, read_strict(folder / "run" / "metrics.jsonl"), epochs * STEPS_PER_EPOCH
        )
    report.finish("soak", {**figures, "seconds": round(seconds, 1)}, TARGETS)


def watched(workdir: Path, settings: Mapping[str, Any]) -> tuple[list[Sample], float]:
    """Samples a run once per second, from its first row on.

    Returns the samples and the run's seconds.
    """
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    arguments = [
        sys.executable,
        "-m",
        "p2o_jax.main",
        "--config",
        "configs/smoke.py",
        "--workdir",
        str(workdir),
        *flags,
    ]
    begin, samples, reader = time.monotonic(), [], Follower(workdir / "metrics.jsonl")
    with subprocess.Popen(
        arguments, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stdout=sys.stderr
    ) as process:
        while process.poll() is None:
            time.sleep(1.0)
            if step := reader.num_steps():
                samples += sample(process.pid, step)
    if process.returncode:
        raise ConfigError(f"the run ended with exit code {process.returncode}")
    return samples, time.monotonic() - begin


class Follower:
    """Counts the policy steps in a growing metrics.jsonl, reading every byte once."""

    def __init__(self, path: Path):
        self.path, self.offset, self.steps = path, 0, 0

    def num_steps(self) -> int:
        if self.path.exists():
            with open(self.path, "rb") as f:
                f.seek(self.offset)
                data = f.read()
            self.offset += len(data)
            self.steps += data.count(b'"train/loss"')
        return self.steps


def sample(pid: int, step: int) -> list[Sample]:
    """One sample, or None if the process has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        rss = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return [
            Sample(
                step,
                rss,
                len(list((folder / "fd").iterdir())),
                len(list((folder / "task").iterdir())),
            )
        ]
    except (OSError, IndexError):
        return []


def figures_of(
    samples: Sequence[Sample], rows: Sequence[Mapping[str, Any]], num_steps: int
) -> dict[str, Any]:
    """The growth from the second quarter of the steps to the last.

    This covers median memory (as a fraction) and the largest numbers of files and threads.
    """
    quarters = [
        [s for s in samples if q * num_steps < 4 * s.step <= (q + 1) * num_steps] for q in range(4)
    ]
    second, last = quarters[1], quarters[3]
    compiles = [(row["step"], row["perf/compiles"]) for row in rows if "perf/compiles" in row]
    settled = max(count for step, count in compiles if step <= 2 * STEPS_PER_EPOCH)
    rss = [statistics.median(s.rss_bytes for s in quarter) for quarter in quarters]
    return {
        "steps": sum("train/loss" in row for row in rows),
        "prompt_phases": sum(row.get("gepa/skipped") == 0 for row in rows),
        "rss_mb_by_quarter": [round(value / 1e6, 1) for value in rss],
        "rss_growth": round(rss[3] / rss[1] - 1, 4),
        "files_by_quarter": [max(s.files for s in quarter) for quarter in quarters],
        "files_growth": max(s.files for s in last) - max(s.files for s in second),
        "threads_by_quarter": [max(s.threads for s in quarter) for quarter in quarters],
        "threads_growth": max(s.threads for s in last) - max(s.threads for s in second),
        "compiles_after_two_epochs": settled,
        "late_compiles": max(count for _, count in compiles) - settled,
    }


if __name__ == "__main__":
    command(run)
