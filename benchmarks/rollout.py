"""Sampling speed compared with other tools: `python -m benchmarks.rollout [--peers]`.

Models are Qwen3 models with random weights (peers/make_model.py) in float32. The cases are

- `equal`: 64 prompts of 64 tokens, with 128 new tokens each.
- `group`: 8 prompts of 512 tokens, with 8 rollouts of 128 tokens each.
- `geometric`: lengths of mean 46, at most 256. This package samples 256 rollouts in 64 slots, the
  other tools use batches of 64.

With --peers the same cases run with `generate` of Hugging Face and the sampler of Tunix. For their
environments (--trl-python, --tunix-python), see peers/README.md.

Figures are tokens per CPU second of the process, because wall-clock time on a shared machine is
unreliable. All processes are pinned to one core (--core) and take turns. `floor` is the time of the
matrix products alone.
"""

import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import learner, report
from benchmarks.report import Target
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command

PEERS = Path(__file__).parent / "peers"
CASES = {
    "equal": ["--batch", "64", "--new-tokens", "128"],
    "group": ["--batch", "64", "--new-tokens", "128", "--group", "8", "--prompt-len", "512"],
    "geometric": ["--new-tokens", "256", "--eos-mean", "48"],
}
BATCHES = {
    "geometric": {
        "p2o": ["--batch", "256", "--slots", "64"],
        "hf": ["--batch", "64"],
        "tunix": ["--batch", "64"],
    }
}
SPEEDUP = {
    ("nano", "equal"): {"tunix": 2.0, "hf": 2.5},
    ("small", "equal"): {"tunix": 1.4, "hf": 1.8},
    ("nano", "group"): {"tunix": 4.0, "hf": 4.0},
    ("small", "group"): {"tunix": 4.0, "hf": 4.0},
    ("nano", "geometric"): {"tunix": 4.0, "hf": 4.0},
    ("small", "geometric"): {"tunix": 4.0, "hf": 4.0},
}
OVER_FLOOR = {"nano": 2.5, "small": 1.6}
COMMAND_LINE = CommandLine(
    "benchmarks.rollout",
    __doc__,
    Flag("peers", "Also measure Hugging Face and Tunix", False, kind=bool),
    Flag("sizes", "Models to measure", ["nano", "small"], several=True),
    Flag("cases", "Cases to measure", list(CASES), several=True),
    Flag("rounds", "Turns of each process", 2, kind=int, within=COUNT),
    Flag("repeats", "Measurements per turn", 3, kind=int, within=COUNT),
    Flag("models", "Folder of the models", str(learner.CACHE / "models"), metavar="DIR"),
    Flag("trl-python", "Python of TRL's environment", str(learner.CACHE / "trlenv/bin/python")),
    Flag(
        "tunix-python", "Python of Tunix's environment", str(learner.CACHE / "tunixenv/bin/python")
    ),
    Flag("core", "CPU core that all processes are pinned to", "0"),
    Flag("floor", "Used internally: the model whose matrix products are measured"),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Measures and reports.

    Raises:
        ConfigError: the flags are invalid, or a measurement fails.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    if flags["floor"]:
        print(json.dumps(floor(Path(flags["floor"]))), flush=True)
        return
    tools = {"p2o": sys.executable}
    if flags["peers"]:
        tools |= {"hf": flags["trl-python"], "tunix": flags["tunix-python"]}
    figures: dict[str, Any] = {}
    targets: dict[str, Target] = {
        "slots in use": Target("nano_geometric_frac_slots_busy", ">=", 0.85)
    }
    for size in flags["sizes"]:
        model = Path(flags["models"]) / size
        if not (model / "config.json").exists():
            learner.call(
                [sys.executable, str(PEERS / "make_model.py"), "--size", size, "--out", str(model)]
            )
        pinned = ["taskset", "-c", flags["core"]]
        todo = {
            ("floor", "equal"): [
                *pinned,
                sys.executable,
                "-m",
                "benchmarks.rollout",
                f"--floor={model}",
            ]
        }
        for case in flags["cases"]:
            for tool, python in tools.items():
                common = [
                    "--model",
                    str(model),
                    "--repeats",
                    str(flags["repeats"]),
                    "--threads",
                    "1",
                    "--cpus",
                    flags["core"],
                ]
                script = str(PEERS / f"{tool}_generate.py")
                todo[tool, case] = [
                    python,
                    script,
                    *common,
                    *CASES[case],
                    *BATCHES.get(case, {}).get(tool, []),
                ]
        compare(size, todo, flags["rounds"], figures)
        targets[f"{size}: over the floor"] = Target(
            f"{size}_over_floor", "<=", OVER_FLOOR.get(size, 2.0)
        )
        for tool, case in todo:
            if tool in ("hf", "tunix"):
                targets[f"{size}, {case}: over {tool}"] = Target(
                    f"{size}_{case}_over_{tool}", ">=", SPEEDUP[size, case][tool]
                )
    report.finish("rollout", figures, targets)


def compare(
    size: str, todo: dict[tuple[str, str], list[str]], rounds: int, figures: dict[str, Any]
) -> None:
    """Adds a model's figures: medians over rounds in which all commands take turns."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {which: [] for which in todo}
    for _ in range(rounds):
        for which, arguments in todo.items():
            rows[which].append(learner.call(arguments))
            print(f"{size} {' '.join(which)} {rows[which][-1]}", file=sys.stderr)
    of = {
        which: {k: median(row[k] for row in measured) for k in _FIGURES if k in measured[0]}
        for which, measured in rows.items()
    }
    for (tool, case), row in of.items():
        if tool != "floor":
            row["tokens_per_cpu_s"] = row["mean_len"] * rows[tool, case][0]["batch"] / row["cpu_s"]
        figures[f"{size}_{case}_{tool}"] = {key: round(value, 3) for key, value in row.items()}
        if tool in ("hf", "tunix"):
            figures[f"{size}_{case}_over_{tool}"] = round(
                of["p2o", case]["tokens_per_cpu_s"] / row["tokens_per_cpu_s"], 2
            )
    if ("p2o", "equal") in of:
        figures[f"{size}_over_floor"] = round(
            of["p2o", "equal"]["cpu_s"] / of["floor", "equal"]["cpu_s"], 2
        )
    if ("p2o", "geometric") in of:
        figures[f"{size}_geometric_frac_slots_busy"] = round(
            of["p2o", "geometric"]["frac_slots_busy"], 3
        )


_FIGURES = ("tokens_per_s", "cpu_s", "mean_len", "compile_s", "peak_rss_mb", "frac_slots_busy")


def floor(path: Path, rows: int = 64, prompt: int = 64, steps: int = 128) -> dict[str, float]:
    """CPU seconds of the matrix products of `equal` alone, one after the other on the same data."""
    import jax
    import jax.numpy as jnp

    from p2o_jax.models import hf_config

    spec = hf_config.read_spec(path)

    def draw(i: int, *shape: int) -> jax.Array:
        return jax.random.normal(jax.random.key(i), shape) * 0.02

    heads, kept = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes = [(spec.width, heads), (spec.width, kept), (spec.width, kept), (heads, spec.width)]
    shapes += [(spec.width, spec.mlp), (spec.width, spec.mlp), (spec.mlp, spec.width)]
    layers = [
        [draw(7 * n + i, *shape) for i, shape in enumerate(shapes)] for n in range(spec.layers)
    ]
    head = draw(99, spec.width, spec.vocab)

    def forward(layers: Any, head: jax.Array, x: jax.Array, with_head: bool) -> jax.Array:
        for q, k, v, o, gate, up, down in layers:
            x = (x @ q) @ o + ((x @ k).sum() + (x @ v).sum()) * 1e-9
            x = (x @ gate + x @ up) @ down
        return x + (x @ head).max() * 1e-9 if with_head else x

    @functools.partial(jax.jit, static_argnums=3)
    def run(layers: Any, head: jax.Array, x: jax.Array, times: int) -> jax.Array:
        return jax.lax.fori_loop(0, times, lambda _, x: forward(layers, head, x, times > 1), x)

    prompts, tokens = jnp.ones((rows * prompt, spec.width)), jnp.ones((rows, spec.width))
    seconds = []
    for _ in range(6):
        start = time.process_time()
        jax.block_until_ready((run(layers, head, prompts, 1), run(layers, head, tokens, steps)))
        seconds.append(time.process_time() - start)
    return {"cpu_s": median(seconds[1:])}


if __name__ == "__main__":
    command(run)
