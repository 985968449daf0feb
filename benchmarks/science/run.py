"""Runs arms and appends a row per run to the results.

Each arm runs with the real command on one core, at most two at a time.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Queue
from typing import Any

from benchmarks import commands
from benchmarks.science import run_figures
from benchmarks.science.arms import Run
from p2o_jax import config, types
from p2o_jax.config import ConfigError, loading
from p2o_jax.toy_world import pretrain
from p2o_jax.tracking.record_rows import read_strict

RESULTS = Path(__file__).with_name("results.jsonl")
VARY = ("cpu_seconds", "versions")  # what may differ in the rows of equal runs


def command(run: Run, workdir: str) -> list[str]:
    """The command that repeats a run."""
    return [
        "python",
        "-m",
        "p2o_jax.main",
        f"--config={run.config}",
        *(f"--config.{o}" for o in run.overrides),
        f"--workdir={workdir}",
    ]


def pending(runs: Iterable[Run], results: Path) -> list[Run]:
    """The runs that have no row yet, each once."""
    known = {tuple(row["overrides"]) for row in read_strict(results)}
    left: dict[tuple[str, ...], Run] = {}
    for run in runs:
        if run.overrides not in known:
            left.setdefault(run.overrides, run)
    return list(left.values())


def run_all(runs: Sequence[Run], results: Path, at_a_time: int) -> None:
    """Runs the arms and appends their rows, in the order in which they end.

    Base models are pretrained first, one after the other.

    Raises:
        ConfigError: runs failed; the message has the end of their output. The other runs have rows.
    """
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0))[:at_a_time]:
        cores.put(core)
    failed, begin = [], time.time()
    for world in dict.fromkeys(settings(run).world for run in runs):
        pretrain.ensure_base(world, lambda line: print(line, flush=True))

    def one(run: Run) -> tuple[Run, dict[str, Any] | str]:
        core = cores.get()
        try:
            return run, make(run, core)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(cores.qsize()) as pool:
        for done, future in enumerate(
            as_completed([pool.submit(one, run) for run in runs]), start=1
        ):
            run, row = future.result()
            name = f"{run.arm.name}, dial {run.dial}, seed {run.seed}"
            if isinstance(row, str):
                failed.append(f"{name}: {row}")
                continue
            with results.open("a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
            left = (time.time() - begin) / done * (len(runs) - done)
            print(
                f"{done}/{len(runs)}  {name}: {row['accuracy']:.3f}, {row['cpu_seconds']:.0f} s of"
                f" CPU; {left / 60:.0f} min left",
                flush=True,
            )
    if failed:
        raise ConfigError(*failed)


def redo(runs: Iterable[Run], results: Path) -> None:
    """Repeats those of the runs that have a row.

    Raises:
        ConfigError: one line for every figure that differs.
    """
    known, differing = {tuple(row["overrides"]): row for row in read_strict(results)}, []
    for run in runs:
        if (old := known.get(run.overrides)) is None:
            continue
        row = make(run, min(os.sched_getaffinity(0)))
        again = {"failed": row} if isinstance(row, str) else json.loads(json.dumps(row))
        differ = [key for key in old if key not in VARY and again.get(key) != old[key]]
        print(
            f"{run.arm.name}, dial {run.dial}, seed {run.seed}:"
            f" {'differs' if differ else 'the same'}",
            flush=True,
        )
        differing += [
            f"{run.arm.name}, dial {run.dial}, seed {run.seed}: {key} is {again.get(key)}, was"
            f" {old[key]}"
            for key in differ
        ]
    if differing:
        raise ConfigError(*differing)


def make(run: Run, core: int) -> dict[str, Any] | str:
    """Runs one arm on one core. Returns its row, or the end of its output if it fails.

    With one thread, sums have a fixed order.
    """
    folder = tempfile.mkdtemp(prefix="science-")
    words = [sys.executable, *command(run, f"{folder}/run")[1:]]
    try:
        ended = commands.run(words, core)
        # after SIGTERM a run leaves with exit code 0
        if ended.code or not Path(folder, "run", "result.json").exists():
            return f"exit code {ended.code}: {ended.output[-commands.END :]}"
        return {
            **figures(run, Path(folder) / "run"),
            "cpu_seconds": ended.usage.cpu_seconds,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def figures(run: Run, workdir: Path) -> dict[str, Any]:
    """The recorded figures of a finished run.

    These are its settings, accuracy over generated tokens, accuracy on sets that differ from
    training before and after it, hard questions by epoch, cost, and a digest of all losses,
    evaluations and templates. Runs with equal digests are equal bit for bit.
    """
    result = _read(workdir / "result.json")
    metrics, evaluations = (
        read_strict(workdir / "metrics.jsonl"),
        read_strict(workdir / "evaluations.jsonl"),
    )
    losses = [row["train/loss"] for row in metrics if "train/loss" in row]
    curve = [[row["generated_tokens"], row["accuracy"]] for row in evaluations]
    texts = [row["text"] for row in read_strict(workdir / "templates.jsonl")]
    return {
        "arm": run.arm.name,
        "dial": run.dial,
        "seed": run.seed,
        "overrides": run.overrides,
        "accuracy": result["accuracy"],
        "by_family": result["by_family"],
        "curve": curve,
        "other_sets": run_figures.other_sets(evaluations),
        "frac_right_masked": run_figures.frac_right_masked(metrics),
        "generated_tokens": result["generated_tokens"],
        "flops": sum(row.get("flops", 0) for row in result["ledger"].values()),
        "steps": result["steps"],
        "hard_by_epoch": [
            row["gepa/hard_questions"] for row in metrics if "gepa/hard_questions" in row
        ],
        "p_chain_plain": result["p_chain_plain"],
        "digest": types.digest(json.dumps([losses, curve, texts])),
        "versions": {
            name: version
            for name, version in _read(workdir / "versions.json").items()
            if name in ("p2o_jax", "jax", "jaxlib")
        },
    }


def settings(run: Run) -> config.Config:
    """The config of a run, not resolved."""
    values = loading.load_config_dict(run.config, [tuple(o.split("=", 1)) for o in run.overrides])
    return loading.from_config_dict(values)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
