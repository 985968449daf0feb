"""A sparse MLP on one device: every expert computes every token, or grouped products compute those
that were chosen.

Run it with `python -m benchmarks.experts`. Figures are milliseconds of a forward pass and of its
gradients, and what grouped products take as a multiple of the other way.
"""

import functools
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.report import Target
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command

WIDTH = 256
SIZES = ((8, 2, 512), (32, 4, 256), (128, 8, 96))  # experts, chosen, channels of each
TOKENS = (16, 256)
COMMAND_LINE = CommandLine(
    "benchmarks.experts",
    __doc__,
    Flag("repeats", "Measurements of which the median counts", 7, kind=int, within=COUNT),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Measures and reports."""
    flags, _ = COMMAND_LINE.parse(argv)
    figures: dict[str, Any] = {}
    for count, chosen, channels in SIZES:
        for tokens in TOKENS:
            name = f"{chosen}_of_{count}_{tokens}_tokens"
            figures[name] = measure(count, chosen, channels, tokens, flags["repeats"])
    figures["least_ratio"] = min(x["grouped_over_dense"] for x in figures.values())
    targets = {"dense pays on a CPU": Target("least_ratio", ">=", 0.9)}
    report.finish("experts", figures, targets)


def measure(count: int, chosen: int, channels: int, tokens: int, repeats: int) -> dict[str, float]:
    """Milliseconds of each way, forward and with gradients; and the ratio of the latter."""
    import jax
    import jax.numpy as jnp

    from p2o_jax.models import experts
    from p2o_jax.models.spec import Experts

    kind = Experts(count, chosen, channels)
    shapes = {
        "router": (WIDTH, count),
        "expert_gate": (count, WIDTH, channels),
        "expert_up": (count, WIDTH, channels),
        "expert_down": (count, channels, WIDTH),
    }
    keys = jax.random.split(jax.random.key(0), len(shapes) + 1)
    weights = {
        name: jax.random.normal(key, shape) * shape[-2] ** -0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    x_ND = jax.random.normal(keys[-1], (tokens, WIDTH))

    def mixed(way: Any, weights: Any, x_ND: jax.Array) -> jax.Array:
        gated = functools.partial(experts.hidden, kind, jax.nn.silu)
        weight_Nk, routed = experts.route(kind, weights, x_ND)
        return way(gated, weights, x_ND, weight_Nk, routed.expert_Nk)

    def spent(run: Any) -> float:
        jax.block_until_ready(run(weights, x_ND))
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(run(weights, x_ND))
            seconds.append(time.perf_counter() - start)
        return round(median(seconds) * 1e3, 2)

    figures = {}
    for way in (experts.dense, experts.grouped):
        forward = functools.partial(mixed, way)
        loss = jax.grad(lambda w, x, f=forward: jnp.sum(f(w, x)), argnums=(0, 1))
        figures[way.__name__] = spent(jax.jit(forward))
        figures[f"{way.__name__}_gradients"] = spent(jax.jit(loss))
    ratio = figures["grouped_gradients"] / figures["dense_gradients"]
    return {**figures, "grouped_over_dense": round(ratio, 2)}


if __name__ == "__main__":
    command(run)
