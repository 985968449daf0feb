"""Tokens per second of a full update: `python -m benchmarks.learner [--peers]`.

An update covers everything from rollouts with advantages to new weights: packing, scoring where
needed, the backward pass and the optimizer. Models are Qwen3 models with random weights
(peers/make_model.py). Batches have 64 sequences with prompts of 64 tokens and responses of 128
tokens (`equal`), or of mean 46 and at most 256 tokens (`geometric`).

With --peers the same batches go through the loss and update of TRL and Tunix (peers/trl_update.py,
peers/tunix_update.py), with micro-batches of 64 and of 16 sequences (--micro); the faster one
counts. For their environments (--trl-python, --tunix-python), see peers/README.md.

Figures are prompt and response tokens, without padding, per CPU second of the process, because
wall-clock time on a shared machine is unreliable. All processes are pinned to one core and take
turns. With --profile only the time of this package's update is measured, by kind of operation.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import memory, ops, report
from benchmarks.report import Target
from p2o_jax import config
from p2o_jax.config import ConfigError
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command

PEERS = Path(__file__).parent / "peers"
CACHE = Path.home() / ".cache" / "p2o_jax" / "peers"
NUM, PROMPT = 64, 64
SHAPES = {"equal": 128, "geometric": 256}  # the longest response
SPEED = {
    ("nano", "equal"): 1.5,
    ("small", "equal"): 1.3,
    ("nano", "geometric"): 3.0,
    ("small", "geometric"): 3.0,
}
COMMAND_LINE = CommandLine(
    "benchmarks.learner",
    __doc__,
    Flag("peers", "Also measure TRL and Tunix", False, kind=bool),
    Flag("sizes", "Models to measure", ["nano", "small"], several=True),
    Flag("rounds", "Turns of each process", 2, kind=int, within=COUNT),
    Flag("steps", "Updates per turn", 6, kind=int, within=COUNT),
    Flag("models", "Folder of the models", str(CACHE / "models"), metavar="DIR"),
    Flag("trl-python", "Python of TRL's environment", str(CACHE / "trlenv/bin/python")),
    Flag("tunix-python", "Python of Tunix's environment", str(CACHE / "tunixenv/bin/python")),
    Flag("core", "CPU core that all processes are pinned to", "0"),
    Flag("micro", "Sequences per micro-batch of the peers", ["64", "16"], several=True),
    Flag("profile", "Only measure this package's update, by kind of operation", False, kind=bool),
    Flag("worker", "Used internally: MODEL,BATCH,SHAPE,KIND of a single measurement"),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Measures and reports.

    Raises:
        ConfigError: the flags are invalid, or a measurement fails.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    if flags["worker"]:
        print(
            json.dumps(
                measure(
                    *flags["worker"].split(","), steps=flags["steps"], profiled=flags["profile"]
                )
            ),
            flush=True,
        )
        return
    figures: dict[str, Any] = {}
    targets: dict[str, Target] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in flags["sizes"]:
            model = Path(flags["models"]) / size
            if not (model / "config.json").exists():
                call(
                    [
                        sys.executable,
                        str(PEERS / "make_model.py"),
                        "--size",
                        size,
                        "--out",
                        str(model),
                    ]
                )
            for shape in SHAPES:
                path = Path(folder) / f"{size}_{shape}.npz"
                tokens = write_batch(
                    path, shape, json.loads((model / "config.json").read_text())["vocab_size"]
                )
                if flags["profile"]:
                    done = call([*commands(flags, model, path, shape)["ours:"], "--profile"])
                    figures[f"{size}_{shape}_seconds_by_kind"] = done["seconds_by_kind"]
                    continue
                compare(
                    f"{size}_{shape}",
                    commands(flags, model, path, shape),
                    tokens,
                    flags["rounds"],
                    figures,
                )
                if flags["peers"]:
                    targets[f"{size}, {shape}: speed"] = Target(
                        f"{size}_{shape}_speedup", ">=", SPEED[size, shape]
                    )
                    targets[f"{size}, {shape}: memory"] = Target(
                        f"{size}_{shape}_memory_ratio", "<=", 0.5
                    )
    report.finish("learner", figures, targets)


def write_batch(path: Path, shape: str, vocab: int) -> int:
    """Writes a batch, and returns its number of tokens without padding."""
    rng, longest = np.random.default_rng(0), SHAPES[shape]
    length = (
        np.full(NUM, longest)
        if shape == "equal"
        else np.minimum(rng.geometric(1 / 46, NUM), longest)
    )
    length[0] = longest
    np.savez(
        path,
        prompt=rng.integers(40, vocab, (NUM, PROMPT)),
        response=rng.integers(40, vocab, (NUM, longest)),
        length=length,
        advantage=rng.normal(size=NUM).astype(np.float32),
    )
    return int(NUM * PROMPT + length.sum())


def commands(flags: dict[str, Any], model: Path, batch: Path, shape: str) -> dict[str, list[str]]:
    """The commands to run, by name. The part of a name before the colon is the tool."""
    own = [sys.executable, "-m", "benchmarks.learner", f"--steps={flags['steps']}"]
    commands_by_name = {
        "ours:": [*own, f"--worker={model},{batch},{shape},first"],
        "ours_scored:": [*own, f"--worker={model},{batch},{shape},later"],
    }
    if flags["peers"]:
        for tool in ("trl", "tunix"):
            for micro in flags["micro"]:
                commands_by_name[f"{tool}:{micro}"] = [
                    flags[f"{tool}-python"],
                    str(PEERS / f"{tool}_update.py"),
                    "--model",
                    str(model),
                    "--batch",
                    str(batch),
                    "--micro-batch",
                    micro,
                    "--steps",
                    str(flags["steps"]),
                    "--threads",
                    "1",
                ]
    return {
        name: ["taskset", "-c", flags["core"], *arguments]
        for name, arguments in commands_by_name.items()
    }


def compare(
    name: str, todo: dict[str, list[str]], tokens: int, rounds: int, figures: dict[str, Any]
) -> None:
    """Adds the figures of one model and batch.

    These are medians over rounds in which all commands take turns.

    Args:
        name: names the model and batch.
        todo: the commands, by name.
        tokens: tokens in the batch.
        rounds: the number of rounds.
        figures: receives the medians.
    """
    rows: dict[str, list[dict[str, Any]]] = {which: [] for which in todo}
    for _ in range(rounds):
        for which, arguments in todo.items():
            rows[which].append(call(arguments))
            print(f"{name} {which} {rows[which][-1]}", file=sys.stderr)
    best: dict[str, tuple[float, float, float]] = {}
    for which, measured in rows.items():
        of = {
            key: median(row[key] for row in measured)
            for key in ("cpu_s", "update_s", "peak_rss_mb")
        }
        tool = which.split(":")[0]
        best[tool] = min(
            best.get(tool, (np.inf, 0.0, 0.0)), (of["cpu_s"], of["update_s"], of["peak_rss_mb"])
        )
    for tool, (cpu, wall, rss) in best.items():
        speed = {"tokens_per_cpu_s": round(tokens / cpu), "tokens_per_s": round(tokens / wall)}
        figures[f"{name}_{tool}"] = {**speed, "cpu_s": round(cpu, 3), "peak_rss_mb": round(rss)}
    peers = [values for tool, values in best.items() if not tool.startswith("ours")]
    if peers:
        figures[f"{name}_speedup"] = round(min(p[0] for p in peers) / best["ours"][0], 2)
        figures[f"{name}_speedup_scored"] = round(
            min(p[0] for p in peers) / best["ours_scored"][0], 2
        )
        figures[f"{name}_memory_ratio"] = round(best["ours"][2] / min(p[2] for p in peers), 2)


def call(arguments: Sequence[str]) -> dict[str, Any]:
    """Runs a command and returns its last line, which is JSON.

    Raises:
        ConfigError: the command fails.
    """
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    if done.returncode:
        raise ConfigError(
            f"{' '.join(arguments)}: exit code {done.returncode}:"
            f" {done.stderr.strip().splitlines()[-1:]}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(
    model: str, path: str, shape: str, which: str, steps: int, profiled: bool = False
) -> dict[str, Any]:
    """Seconds and peak memory of this package's update.

    Args:
        model: the model directory.
        path: the batch file.
        shape: the batch's shape.
        which: "first" for the first update after sampling, or "later", which scores old log-probs.
        steps: the number of updates.
        profiled: whether to measure time by kind of operation.
    """
    import jax
    import jax.numpy as jnp

    from p2o_jax.models import hf, hf_config, sharding
    from p2o_jax.rl.learner import Learner

    spec, mesh, longest = (
        hf_config.read_spec(Path(model)),
        sharding.make_mesh((1, 1, 1), jax.devices()[:1]),
        SHAPES[shape],
    )
    cfg = config.resolve(
        config.Config(
            model=config.ModelConfig(remat="full", logit_chunk=512),
            data=config.DataConfig(max_prompt_tokens=PROMPT),
            rollout=config.RolloutConfig(
                NUM // 8, 8, temperature=1.0, max_new_tokens=longest, prompt_buckets=(PROMPT,)
            ),
            optim=config.OptimConfig(minibatch_questions=NUM // 8, micro_rows=4),
        )
    )
    learner = Learner(spec, mesh, cfg, 100, jnp.float32, 0)
    state = learner.init(hf.load(Path(model), spec, learner.param_shardings, "float32"))
    examples = read_batch(path)

    def once() -> dict[str, float]:
        nonlocal state
        scored, _ = learner.score(
            state.params, None, examples, len(examples) if which == "first" else 0
        )
        state, stats = learner.update(state, scored)
        jax.block_until_ready(state)
        return stats

    if profiled:
        once()
        return {"seconds_by_kind": ops.seconds_by_kind(lambda: once() and None)}
    wall, cpu = [], []
    for _ in range(steps):
        w, c = time.perf_counter(), time.process_time()
        stats = once()
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    return {
        "update_s": median(wall[2:]),
        "cpu_s": median(cpu[2:]),
        "peak_rss_mb": round(memory.own_peak_bytes() / 2**20, 1),
        "frac_row_tokens_real": round(stats["perf/frac_row_tokens_real"], 3),
    }


def read_batch(path: str) -> list[Any]:
    """The examples of a batch file."""
    from p2o_jax.rl.batch import Example

    data = np.load(path)
    examples = []
    for prompt, response, length, advantage in zip(
        data["prompt"], data["response"], data["length"], data["advantage"], strict=True
    ):
        ids = tuple(int(t) for t in prompt)
        examples.append(
            Example(
                ids,
                ids,
                response[:length].astype(np.int32),
                float(advantage),
                True,
                np.zeros(length, np.float32),
            )
        )
    return examples


if __name__ == "__main__":
    command(run)
