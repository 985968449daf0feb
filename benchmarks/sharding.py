"""The same update and sampling on every mesh of eight devices: `python -m benchmarks.sharding`.

Uses eight fake CPU devices, float32, and a random model of two layers. The meshes are all
factorizations data x fsdp x tensor of eight. Each mesh starts from the same parameters, makes two
updates on the same 32 sequences, and samples the same 32 rollouts. Parameters, log-probs and texts
are compared with those of one device.

Seconds are processor time of this process, the median of the repeats, without compilation. They
show the cost of the host and of XLA's collectives between threads, not the speed of a pod. If
libtpu is installed, each mesh is also planned for v5e:2x4 (p2o_jax/plan). `--plan qwen3-0.6b` plans
a model of that size instead of the small one, which takes minutes per mesh.
"""

import dataclasses
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
# threads of XLA's pool: with fewer, collectives of eight devices can wait forever
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from benchmarks.report import Target
from p2o_jax import config
from p2o_jax.config import Config
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command
from p2o_jax.models import sharding, transformer
from p2o_jax.models.spec import ModelSpec
from p2o_jax.plan import chips, planner, programs
from p2o_jax.plan.estimate import Workload
from p2o_jax.rl.batch import Example
from p2o_jax.rl.learner import Learner
from p2o_jax.runtime import distributed
from p2o_jax.startup import components
from p2o_jax.startup.model import Model
from p2o_jax.types import Request, SamplingParams

DEVICES = 8
SPEC = ModelSpec(
    "qwen3",
    vocab=512,
    width=256,
    layers=2,
    heads=8,
    kv_heads=4,
    head_dim=128,
    mlp=512,
    qk_norm=True,
    tied=True,
)
PROMPT, RESPONSE, SEQUENCES = 32, 32, 32
LR = 1e-3
PLANNED_FOR = "v5e:2x4"
HEAD = (
    "data x fsdp x tensor",
    "params differ by",
    "log-probs by",
    "texts alike",
    "update, CPU s",
    "sampling, CPU s",
)
PLANNED = ("update: MB sent", "times the least", "update, ms", "decoding, ms", "MiB on a chip")
COMMAND_LINE = CommandLine(
    "benchmarks.sharding",
    __doc__,
    Flag("repeats", "Measurements of which the median counts", 3, kind=int, within=COUNT),
    Flag("picture", "Picture to draw", metavar="FILE"),
    Flag("plan", "Model to plan instead of the small one, e.g. qwen3-0.6b", metavar="MODEL"),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Measures and reports.

    Raises:
        ConfigError: the flags are invalid.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    jax.config.update("jax_num_cpu_devices", DEVICES)
    alone = measure((1, 1, 1), flags["repeats"])
    rows: dict[str, dict[str, Any]] = {}
    for shape in meshes(DEVICES):
        name = " x ".join(map(str, shape))
        measured = measure(shape, flags["repeats"])
        rows[name] = differences(measured, alone) | {
            "update_cpu_s": measured["update_cpu_s"],
            "sampling_cpu_s": measured["sampling_cpu_s"],
        }
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    if importlib.util.find_spec("libtpu"):
        for shape in meshes(DEVICES):
            rows[" x ".join(map(str, shape))] |= planned(shape, flags["plan"])
    else:
        print("libtpu is not installed: no plans (pip install 'jax[tpu]')", file=sys.stderr)
    print(table(rows))
    if flags["picture"]:
        draw(rows, Path(flags["picture"]))
    figures = {
        "meshes": rows,
        "alone": {"update_cpu_s": alone["update_cpu_s"], "sampling_cpu_s": alone["sampling_cpu_s"]},
        "max_params_difference": max(row["params"] for row in rows.values()),
        "max_logps_difference": max(row["logps"] for row in rows.values()),
        "least_texts_alike": min(row["texts"] for row in rows.values()),
    }
    targets = {
        "params after two updates": Target("max_params_difference", "<=", 1e-2),
        "log-probs after two updates": Target("max_logps_difference", "<=", 1e-3),
        "texts": Target("least_texts_alike", ">=", 1.0),
    }
    report.finish("sharding", figures, targets)


def meshes(devices: int) -> list[tuple[int, int, int]]:
    """Every (data, fsdp, tensor) of the devices whose tensor axis divides the query heads.

    Fewer key/value heads are replicated.
    """
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    return [
        (d, f, devices // d // f)
        for d in sizes
        for f in sizes
        if devices % (d * f) == 0 and SPEC.heads % (devices // d // f) == 0
    ]


def settings(shape: tuple[int, int, int]) -> Config:
    """The benchmark's config on a mesh."""
    cfg = config.resolve(Config())
    data, fsdp, tensor = shape
    sizes: dict[str, dict[str, Any]] = {
        "mesh": {"data": data, "fsdp": fsdp, "tensor": tensor},
        "data": {"max_prompt_tokens": PROMPT},
        "rollout": {
            "questions": 8,
            "group_size": SEQUENCES // 8,
            "temperature": 1.0,
            "max_new_tokens": RESPONSE,
            "prompt_buckets": (PROMPT, 256),
            "slots": 16,
            "min_slots": 0,
            "prompt_cache_tokens": 2048,
            "prefill_tokens": 256,
        },
        "optim": {
            "lr": LR,
            "warmup_frac": 0.0,
            "minibatch_questions": 8,
            "micro_rows": 8,
            "row_tokens": 128,
        },
        "gepa": {
            "max_template_tokens": 64,
            "reflect_prompt_tokens": 128,
            "reflect_new_tokens": RESPONSE,
        },
    }
    return dataclasses.replace(
        cfg,
        **{
            name: dataclasses.replace(getattr(cfg, name), **values)
            for name, values in sizes.items()
        },
    )


def measure(shape: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """Parameters and log-probs after two updates, texts, and processor seconds of both."""
    cfg, devices = settings(shape), jax.devices()[: int(np.prod(shape))]
    mesh = sharding.make_mesh(shape, devices)
    learner = Learner(SPEC, mesh, cfg, 100, jnp.float32, pad_id=0)
    params = jax.device_put(transformer.init(SPEC, jax.random.key(0)), learner.param_shardings)
    batch, state = examples(), learner.init(params)
    scored, _ = learner.score(learner.policy(state), None, batch)
    for _ in range(2):
        state, _ = learner.update(state, scored)
    policy = learner.policy(state)
    result = {"params": jax.tree.map(distributed.to_host, policy)}
    result["logps"] = learner.score_tokens(
        policy, [(e.trained_on_ids, e.response_ids) for e in batch], config.trained_row_tokens(cfg)
    )
    model = Model(Path(), SPEC, mesh, jnp.float32, _NoChat())  # type: ignore[arg-type]
    engine = components.make_engine(cfg, model, device_memory=2**32)
    weights, asks, sampling = (
        engine.to_rollout_layout(policy),
        [Request(e.trained_on_ids, f"{i}") for i, e in enumerate(batch)],
        SamplingParams(1.0, RESPONSE),
    )

    def sample() -> list[Any]:
        return engine.generate(weights, asks, sampling, jax.random.key(1))

    def update() -> None:
        nonlocal state
        state, _ = learner.update(state, scored)

    result["texts"] = [tuple(c.token_ids.tolist()) for c in sample()]
    return result | {
        "sampling_cpu_s": cpu_seconds(sample, repeats),
        "update_cpu_s": cpu_seconds(update, repeats),
    }


class _NoChat:
    stop_ids, pad_id = (1,), 0


def examples() -> list[Example]:
    """Random sequences of different lengths."""
    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(SEQUENCES):
        prompt = tuple(rng.integers(2, SPEC.vocab, rng.integers(8, PROMPT + 1)).tolist())
        response = rng.integers(2, SPEC.vocab, rng.integers(8, RESPONSE + 1)).astype(np.int32)
        sequences.append(
            Example(
                prompt,
                prompt,
                response,
                float(rng.normal()),
                True,
                np.zeros(len(response), np.float32),
            )
        )
    return sequences


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Processor seconds of this process, the median of the repeats."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(work())
        taken.append(time.process_time() - start)
    return round(median(taken), 3)


def differences(measured: dict[str, Any], alone: dict[str, Any]) -> dict[str, float]:
    """Compares parameters, log-probs and texts with those of one device.

    Returns the difference of the parameters relative to the size of the updates, the largest
    difference of a log-prob, and the fraction of texts that are equal.
    """
    start = jax.tree.leaves(transformer.init(SPEC, jax.random.key(0)))
    ours, theirs = jax.tree.leaves(measured["params"]), jax.tree.leaves(alone["params"])
    return {
        "params": _distance(ours, theirs) / _distance(theirs, start),
        "logps": max(
            float(np.abs(a - b).max())
            for a, b in zip(measured["logps"], alone["logps"], strict=True)
        ),
        "texts": float(
            np.mean([a == b for a, b in zip(measured["texts"], alone["texts"], strict=True)])
        ),
    }


def _distance(a: Sequence[Any], b: Sequence[Any]) -> float:
    return float(
        np.sqrt(
            sum(np.sum((np.asarray(x) - np.asarray(y)) ** 2) for x, y in zip(a, b, strict=True))
        )
    )


def planned(shape: tuple[int, int, int], model: str) -> dict[str, float]:
    """A plan's figures for a mesh on TPUs, for the small model or a named one."""
    spec = programs.model_spec(model) if model else SPEC
    case = planner.Case(
        model or "small",
        spec,
        settings(shape),
        chips.parse(PLANNED_FOR),
        Workload(PROMPT, RESPONSE, 800),
        None,
    )
    figures = planner.plan(case, lambda line: None)
    fullest = max(m["total"] for m in figures["memory_gib"]) * 1024
    if not figures["step"]:
        return {"mib": round(fullest, 1)}
    exchange, phases = (
        figures["step"]["update_exchange"],
        {p["name"]: p for p in figures["step"]["phases"]},
    )
    return {
        "sent_mb": round(sum(exchange["sent"].values()) / 1e6, 2),
        "ratio": round(exchange["ratio"], 2) if exchange["ratio"] else float("nan"),
        "update_ms": round(phases["update"]["seconds"] * 1e3, 3),
        "decode_ms": round(phases["decode"]["seconds"] * 1e3, 3),
        "mib": round(fullest, 1),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown. Planned figures are empty without a plan."""
    lines = [f"| {' | '.join((*HEAD, *PLANNED))} |", f"|{'---|' * (len(HEAD) + len(PLANNED))}"]
    for name, row in rows.items():
        measured = [
            f"{row['params']:.1e}",
            f"{row['logps']:.1e}",
            f"{row['texts']:.0%}",
            f"{row['update_cpu_s']}",
            f"{row['sampling_cpu_s']}",
        ]
        plan = [
            str(row.get(key, "")) for key in ("sent_mb", "ratio", "update_ms", "decode_ms", "mib")
        ]
        lines.append(f"| {' | '.join([name, *measured, *plan])} |")
    return "\n".join(lines)


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws bars for each mesh: measured processor seconds, and planned ones if any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [
        ("update_cpu_s", "CPU s, measured"),
        ("sampling_cpu_s", "CPU s, measured"),
        ("update_ms", f"ms on {PLANNED_FOR}, planned"),
    ]
    shown += [("decode_ms", f"ms on {PLANNED_FOR}, planned")]
    shown = [(key, unit) for key, unit in shown if any(key in row for row in rows.values())]
    figure, axes = pyplot.subplots(
        1, len(shown), figsize=(3.3 * len(shown), 3.6), sharey=True, layout="constrained"
    )
    for axis, (key, unit) in zip(axes, shown, strict=True):
        axis.barh(list(rows), [row.get(key, 0.0) for row in rows.values()])
        axis.set_title("update" if key.startswith("update") else "sampling")
        axis.set_xlabel(unit)
    axes[0].set_ylabel("data x fsdp x tensor")
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    command(run)
