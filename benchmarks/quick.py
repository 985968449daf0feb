"""Time and memory of the quickstart: `python -m benchmarks.quick [--config configs/quickstart.py]`.

Runs the config in a new workdir (`--workdir DIR`) with empty caches, so that the base model is
pretrained and all programs are compiled.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.memory import PeakMemory
from benchmarks.report import Target
from p2o_jax.config import ConfigError, loading
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.main import command
from p2o_jax.tracking.record_rows import read_strict

TARGETS = {
    "within eleven minutes": Target("seconds", "<=", 660),
    "p2o ahead of grpo": Target("p2o_minus_grpo", ">=", 0.2),
}
COMMAND_LINE = CommandLine(
    "benchmarks.quick",
    __doc__,
    Flag("config", "Config file", "configs/quickstart.py", metavar="FILE.py"),
    Flag("workdir", "New or empty run directory (default: a temporary one)", metavar="DIR"),
)


def run(argv: Sequence[str]) -> None:
    """Runs and reports.

    Raises:
        ConfigError: the flags are invalid, the workdir is not empty, or the run fails.
    """
    flags, overrides = COMMAND_LINE.parse(argv)
    loading.load_config_dict(flags["config"], overrides)
    with tempfile.TemporaryDirectory() as temporary:
        workdir = Path(flags["workdir"] or temporary)
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            raise ConfigError(f"--workdir={workdir}: must be new or empty")
        fresh = [
            f"--config.world.cache_dir={workdir / 'world'}",
            f"--config.train.compile_cache={workdir / 'compiled'}",
        ]
        given = [f"--config.{key}={value}" for key, value in overrides]
        code, seconds, peak_bytes = timed(
            [
                sys.executable,
                "-m",
                "p2o_jax.main",
                f"--config={flags['config']}",
                f"--workdir={workdir}",
                *fresh,
                *given,
            ]
        )
        if code:
            raise ConfigError(f"the run ended with exit code {code}")
        figures = {
            "seconds": round(seconds, 1),
            "peak_rss_gib": round(peak_bytes / 2**30, 2),
            **figures_of(workdir),
        }
    report.finish("quick", figures, TARGETS)


def timed(arguments: Sequence[str]) -> tuple[int, float, int]:
    """Exit code, wall-clock seconds and peak resident bytes of a command and its children.

    Its output goes to standard error.
    """
    start = time.monotonic()
    with subprocess.Popen(arguments, stdout=sys.stderr) as process, PeakMemory(process.pid) as peak:
        code = process.wait()
    return code, time.monotonic() - start, peak.bytes


def figures_of(workdir: Path) -> dict[str, Any]:
    """The figures of a finished workdir: accuracies, tokens, and seconds by phase for every arm.

    A run without arms is the arm "run".
    """
    result = json.loads((workdir / "result.json").read_text(encoding="utf-8"))
    arms = {p.parent.name: p.parent for p in sorted(workdir.glob("*/metrics.jsonl"))} or {
        "run": workdir
    }
    names = (
        "base",
        "grpo",
        "p2o",
        "tokens_grpo",
        "tokens_p2o",
        "accuracy_before",
        "accuracy",
        "p_chain_plain",
    )
    figures: dict[str, Any] = {name: result[name] for name in names if name in result}
    if "p2o" in figures and "grpo" in figures:
        figures["p2o_minus_grpo"] = round(figures["p2o"] - figures["grpo"], 4)
    times, rates = {}, {}
    for arm, folder in arms.items():
        rows = read_strict(folder / "metrics.jsonl")
        times[arm] = seconds_by_phase(rows)
        sampled = sum(row.get("rollout/generated_tokens", 0) for row in rows)
        rates[arm] = round(sampled / max(sum(row.get("time/rollout_s", 0) for row in rows), 1e-9))
    figures["seconds_pretraining"] = round(sum(t.get("pretraining", 0) for t in times.values()), 1)
    return figures | {"rollout_tokens_per_s": rates, "seconds_by_phase": times}


def seconds_by_phase(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The sum of every `time/NAME_s` over the rows of a metrics.jsonl, by NAME."""
    keys = sorted({key for row in rows for key in row if key.startswith("time/")})
    return {
        key.removeprefix("time/").removesuffix("_s"): round(sum(row.get(key, 0) for row in rows), 2)
        for key in keys
    }


if __name__ == "__main__":
    command(run)
