"""One small but complete run of the real command, which the tests of several files share.

A small world in which a few rollouts are rewarded, and a prompt phase that accepts templates
freely, so that updates, templates and distillation all take part. All runs use the same base model
and compiled programs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parent.parent
STEPS, STEPS_PER_EPOCH = 6, 3
SETTINGS = {
    "world.seed": 1,
    "world.steps": 200,
    "world.batch_rows": 8,
    "world.width": 32,
    "world.heads": 2,
    "world.kv_heads": 1,
    "world.head_dim": 16,
    "world.mlp": 64,
    "world.hard_per_family": 1,
    "world.easy_per_family": 10,
    "world.heldout_per_family": 4,
    "rollout.questions": 8,
    "rollout.prompt_buckets": "(64, 160)",
    "rollout.slots": 16,
    "rollout.min_slots": 0,
    "optim.minibatch_questions": 4,
    "loss.entropy_coef": 0.01,
    "gepa.schedule": "every_epoch",
    "gepa.carry_over": 0,
    "gepa.min_hard": 4,
    "gepa.dev_size": 12,
    "gepa.max_metric_calls": 160,
    "gepa.acceptance": "margin",
    "gepa.acceptance_margin": 0,
    "gepa.temperature": 1.0,
    "gepa.filter_replies": "false",
    "distill.drop_failed_templated": "false",
    "eval.every_steps": 3,
    "checkpoint.every_steps": 2,
    "checkpoint.keep_every": 4,
}


def settings(shared: Path) -> dict:
    """The settings of a run; `shared` is the folder that all workers of this test run share."""
    return {
        **SETTINGS,
        "world.cache_dir": shared / "world",
        "train.compile_cache": os.environ["JAX_COMPILATION_CACHE_DIR"],
    }


def environment() -> dict[str, str]:
    """The environment of a command: one device, and lines that do not wrap."""
    kept = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    return {**kept, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "COLUMNS": "300"}


# Several starts in one process, which imports JAX once.
STARTS = """
import importlib, json, sys
from p2o_jax.config import ConfigError
for module, argv in json.loads(sys.argv[1]):
    problems = []
    try:
        importlib.import_module(module).main(argv)
    except ConfigError as e:
        problems = e.problems
    print("PROBLEMS", json.dumps(problems))
"""


def flags(config: str | Path, workdir: Path, settings: dict) -> list[str]:
    """The arguments of a training command."""
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    return [f"--config={config}", f"--workdir={workdir}", *overrides]


def arguments(config: str, workdir: Path, settings: dict) -> list[str]:
    """The command line of a training run."""
    return [sys.executable, "-m", "p2o_jax.main", *flags(config, workdir, settings)]


def start(config: str, workdir: Path, settings: dict) -> subprocess.CompletedProcess:
    """A training run that has ended, with its output."""
    return _completed(arguments(config, workdir, settings))


def starts(*commands: tuple[str, Sequence[str]]) -> list[list[str]]:
    """Runs training commands one after the other in one process.

    Returns the problems of each, which are none if it succeeds.

    Args:
        commands: (module, arguments) of each.
    """
    done = _completed([sys.executable, "-c", STARTS, json.dumps(commands)])
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.partition("PROBLEMS ")[2] for line in done.stdout.splitlines()]
    return [json.loads(line) for line in lines if line]


def _completed(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600
    )


def succeed(config: str, workdir: Path, settings: dict) -> str:
    """What a run that succeeds prints on standard error."""
    done = start(config, workdir, settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def finished(shared: Path) -> Path:
    """The run directory of an undisturbed run. The first caller runs it; nobody may change it."""
    workdir = shared / "whole"
    with FileLock(shared / "whole.lock"):
        if not workdir.exists():
            assert "pretrain" in succeed("configs/smoke.py", workdir, settings(shared))
    assert (workdir / "result.json").exists(), "the run failed in another worker"
    return workdir
