"""The kernels that the package chooses for the device, against its dense reference: how far their
results are apart, and the time of both.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.accelerator import bounds, device
from benchmarks.accelerator.bounds import Rates

# Weights are rounded to 8 bits in both, each relative to a maximum of its own.
DECODE_TOLERANCE = 2**-6  # of the largest output of a row
# of the largest entry of the output or of a gradient, which are rounded several times
TRAINING_TOLERANCE = 2**-4


class AttentionShape(NamedTuple):
    """Sizes of the attention that is compared: heads of Qwen3-0.6B and 1.7B by default."""

    rows: int  # of decoding
    positions: int  # of the longest row, in decoding
    segments: tuple[tuple[int, ...], ...]  # tokens of the segments of each row, in training
    heads: int = 16
    kv_heads: int = 8
    channels: int = 128
    dtype: str = "bfloat16"
    calls: int = 10


FULL = AttentionShape(128, 2048, ((4096,), (2048, 1024, 512, 512)))
TINY = AttentionShape(8, 64, ((192,), (96, 64, 32)), 4, 2, 16, "float32", 1)


def measure(mesh: Any, rates: Rates, tiny: bool, put: Callable[..., None]) -> None:
    """Puts `decode` and `training`; see `decode_figures` and `training_figures`.

    Args:
        mesh: one device.
        rates: of the device, as measured.
        tiny: small sizes, for a CPU.
        put: receives figures.

    Raises:
        RuntimeError: a result differs from the reference's by more than its tolerance.
    """
    shape = TINY if tiny else FULL
    differ = []
    for name, figures_of in (("decode", decode_figures), ("training", training_figures)):
        figures = figures_of(mesh, shape, rates)
        put(**{name: figures})
        if not figures["agrees"]:
            differ.append(f"{name} ({figures['path']}) by {figures['error']}")
    if differ:
        raise RuntimeError(f"differs from the dense reference: {', '.join(differ)}")


def decode_figures(mesh: Any, shape: AttentionShape, rates: Rates) -> dict[str, Any]:
    """Returns figures of one decode step of a layer, for rows filled to random lengths: error
    relative to a row's largest output, milliseconds of the chosen path and of the dense one, and
    the rate at which the chosen one reads keys and values.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from p2o_jax.models.attention import decoding, reference
    from p2o_jax.models.sharding import BATCH_AXES

    ops = decoding.for_mesh(mesh, shape.kv_heads, shape.channels)
    keys, dtype = jax.random.split(jax.random.key(0), 3), jnp.dtype(shape.dtype)
    sizes = (shape.rows, shape.kv_heads, shape.positions, shape.channels)
    q = jax.random.normal(keys[0], (shape.rows, shape.heads, shape.channels), dtype)
    k, v = (jax.random.normal(key, sizes, dtype) for key in keys[1:])
    cache = reference.stored(k, v, reference.empty_cache(*sizes, dtype, ops.cache))
    lengths = np.random.default_rng(0).integers(1, shape.positions + 1, shape.rows)
    length = jnp.asarray(lengths, jnp.int32)
    split = PartitionSpec(BATCH_AXES)
    chosen = jax.jit(
        jax.shard_map(
            lambda q, cache, length: ops.attend(q, cache, length, None),
            mesh=mesh,
            in_specs=(split, split, split),
            out_specs=split,
            axis_names=set(BATCH_AXES),
            check_vma=False,
        )
    )
    dense = jax.jit(reference.over_cache)
    got, want = chosen(q, cache, length).o_BHC, dense(q, cache, length).o_BHC
    # long rows are means of many values, and so have small outputs
    by_row = jnp.abs(got - want).max(axis=(1, 2)) / jnp.abs(want).max(axis=(1, 2))
    error = float(by_row.max())
    seconds = device.seconds_of(lambda: chosen(q, cache, length), shape.calls)
    dense_seconds = device.seconds_of(lambda: dense(q, cache, length), shape.calls)
    read = 2 * int(lengths.sum()) * shape.kv_heads * shape.channels * dtype.itemsize / seconds
    return {
        "path": _decode_path(mesh, ops),
        "agrees": error <= DECODE_TOLERANCE,
        "error": bounds.rounded(error) if np.isfinite(error) else str(error),
        "ms": bounds.rounded(seconds * 1e3),
        "dense_ms": bounds.rounded(dense_seconds * 1e3),
        "read_gb_per_s": bounds.rounded(read / 1e9),
        "of_copy": bounds.share(read, rates.bytes_per_s),
    }


def _decode_path(mesh: Any, ops: Any) -> str:
    from p2o_jax.models.attention import decoding

    if ops.attend is decoding.windowed:
        return "windowed"
    return f"pallas_decode.{'tpu' if mesh.devices.flat[0].platform == 'tpu' else 'gpu'}"


def training_figures(mesh: Any, shape: AttentionShape, rates: Rates) -> dict[str, Any]:
    """Returns figures of attention over packed rows with its gradients: the largest error of the
    output and of the gradients, each relative to its largest entry; milliseconds of the chosen
    path, of query chunks and of dense scores; and the rate of useful operations.
    """
    import jax
    import jax.numpy as jnp

    from p2o_jax.models.attention import packed, reference

    rows, tokens = len(shape.segments), sum(shape.segments[0])
    keys, dtype = jax.random.split(jax.random.key(1), 4), jnp.dtype(shape.dtype)
    q, k, v, weight = (
        jax.random.normal(key, (rows, tokens, heads, shape.channels), dtype)
        for key, heads in zip(
            keys, (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads), strict=True
        )
    )
    segment = jnp.asarray(
        [np.repeat(np.arange(1, len(row) + 1), row) for row in shape.segments], jnp.int32
    )

    def differentiated(attend: Any) -> Any:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = attend(q, k, v, segment)
            return jnp.sum(out.astype(jnp.float32) * weight.astype(jnp.float32)), out

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        return functools.partial(run, q, k, v)

    path = packed.for_mesh(mesh)
    ways = {"": path, "chunked_": packed.chunked, "dense_": reference.packed}
    runs = {name: differentiated(way) for name, way in ways.items()}
    error = _largest_error(runs[""](), runs["dense_"]())
    seconds = {name: device.seconds_of(run, shape.calls) for name, run in runs.items()}
    useful = training_flops(shape) / seconds[""]
    return {
        "path": getattr(path, "func", path).__name__,
        "agrees": error <= TRAINING_TOLERANCE,
        "error": bounds.rounded(error) if np.isfinite(error) else str(error),
        **{f"{name}ms": bounds.rounded(s * 1e3) for name, s in seconds.items()},
        "tflops": bounds.rounded(useful / 1e12),
        "of_matmul": bounds.share(useful, rates.flops),
    }


def _largest_error(got: Any, want: Any) -> float:
    """Returns the largest error of output and gradients, each relative to its largest entry; NaN
    is infinite.
    """
    import jax.numpy as jnp

    ((_, out), gradients), ((_, right), right_gradients) = got, want
    errors = []
    for a, b in zip((out, *gradients), (right, *right_gradients), strict=True):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        errors.append(float(jnp.abs(a - b).max() / jnp.abs(b).max()))
    return max(errors) if all(np.isfinite(errors)) else float("inf")


def training_flops(shape: AttentionShape) -> int:
    """Returns the operations of causal attention within the segments, and of its gradients, which
    cost twice as many (`models.flops`).
    """
    keys = sum(n * (n + 1) // 2 for row in shape.segments for n in row)
    return 3 * 4 * shape.heads * shape.channels * keys
