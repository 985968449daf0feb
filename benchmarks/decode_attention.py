"""Attention of a decode step on CPU, by the part of the caches that is read.

Run it with `python -m benchmarks.decode_attention`. It compares three ways:

- `whole` reads every position.
- `one window` reads the shortest of five windows that covers the oldest row.
- `tiers` is the sampler's way from attention_decode.WINDOWED_FROM positions on: rows are sorted by
  age, in four tiers with a window each.

The ages of the 64 rows are `geometric` with mean 46, `lognormal` around a sixteenth of the cache,
or `equal` to half of it. Figures are CPU milliseconds.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.report import Target
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command

ROWS, HEADS, KV_HEADS, CHANNELS, LAYERS, STEPS = 64, 4, 2, 32, 4, 10
COMMAND_LINE = CommandLine(
    "benchmarks.decode_attention",
    __doc__,
    Flag("positions", "Positions in the cache", [256, 2048], kind=int, within=COUNT, several=True),
    Flag("repeats", "Measurements of which the median counts", 5, kind=int, within=COUNT),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Measures and reports."""
    flags, _ = COMMAND_LINE.parse(argv)
    figures: dict[str, Any] = {}
    for positions in flags["positions"]:
        for name, ages in draw_ages(positions).items():
            figures[f"{positions}_{name}"] = times(positions, ages, flags["repeats"])
    long = figures.get("2048_geometric", {})
    figures["tiers_over_whole"] = round(long["whole"] / long["tiers"], 2) if long else None
    report.finish("decode_attention", figures, {"tiers pay": Target("tiers_over_whole", ">=", 4.0)})


def draw_ages(positions: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    drawn = {
        "geometric": rng.geometric(1 / 46, ROWS),
        "lognormal": rng.lognormal(np.log(positions / 16), 1.0, ROWS).astype(int) + 1,
        "equal": np.full(ROWS, positions // 2),
    }
    return {name: np.minimum(ages, positions - 1) for name, ages in drawn.items()}


def times(positions: int, ages: np.ndarray, repeats: int) -> dict[str, float]:
    """CPU milliseconds of a step of LAYERS layers, for each way."""
    import jax
    import jax.numpy as jnp

    from p2o_jax.models.attention import decoding, reference
    from p2o_jax.models.attention.reference import Cache, Transposed

    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    shape = (ROWS, KV_HEADS, positions, CHANNELS)
    empty = reference.empty_cache(ROWS, KV_HEADS, positions, CHANNELS, jnp.float32, Transposed)
    caches = [reference.stored(draw(*shape), draw(*shape), empty) for _ in range(LAYERS)]

    def one_window(
        q: jax.Array, cache: Cache, length_B: jax.Array, row_B: None
    ) -> reference.Partial:
        windows = [positions >> i for i in reversed(range(decoding.WINDOWS))]

        def within(window: int) -> Callable[[], reference.Partial]:
            cut = reference.by_position(
                lambda axis, x: jax.lax.slice_in_dim(x, 0, window, axis=axis), cache
            )
            return lambda: reference.over_cache(q, cut, length_B)

        return jax.lax.switch(
            jnp.searchsorted(jnp.array(windows), length_B.max()), [within(w) for w in windows]
        )

    seconds = {}
    before, decoding.WINDOWED_FROM = decoding.WINDOWED_FROM, 1
    for name, attend in (
        ("whole", reference.over_cache),
        ("one_window", one_window),
        ("tiers", decoding.windowed),
    ):

        @jax.jit
        def steps(
            q: jax.Array, caches: list[Cache], length_B: jax.Array, attend: Any = attend
        ) -> jax.Array:
            def step(_: int, q: jax.Array) -> jax.Array:
                for cache in caches:
                    q = q + attend(q, cache, length_B, None).o_BHC * 1e-6
                return q

            return jax.lax.fori_loop(0, STEPS, step, q)

        args = (draw(ROWS, HEADS, CHANNELS), caches, jnp.asarray(ages, jnp.int32))
        jax.block_until_ready(steps(*args))
        spent = []
        for _ in range(repeats):
            start = time.process_time()
            jax.block_until_ready(steps(*args))
            spent.append((time.process_time() - start) / STEPS * 1e3)
        seconds[name] = round(median(spent), 2)
    decoding.WINDOWED_FROM = before
    return seconds


if __name__ == "__main__":
    command(run)
