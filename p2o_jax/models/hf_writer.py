"""Writing of safetensors files, and of a directory of them as a whole."""

import functools
import itertools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from p2o_jax.config import ConfigError
from p2o_jax.models.hf_tensors import SINGLE_FILE, Axes, Stored, whole_shapes
from p2o_jax.runtime import files


def pieces(table: list[Stored], itemsize: int, max_bytes: float) -> dict[str, list[Stored]]:
    """Returns the tensors of each file to write. A tensor above the limit has a file of its own."""
    groups: list[list[Stored]] = [[]]
    filled = 0
    for _, parts in itertools.groupby(table, key=lambda t: t.name):
        tensor = list(parts)
        size = sum(math.prod(t.shape) for t in tensor) * itemsize
        if groups[-1] and filled + size > max_bytes:
            groups.append([])
            filled = 0
        groups[-1] += tensor
        filled += size
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {
        f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)
    }


def index(content_of: dict[str, list[Stored]], itemsize: int) -> dict[str, Any]:
    """Returns the contents of model.safetensors.index.json."""
    count = sum(math.prod(t.shape) for content in content_of.values() for t in content)
    weight_map = {t.name: file for file, content in content_of.items() for t in content}
    return {
        "metadata": {"total_parameters": count, "total_size": count * itemsize},
        "weight_map": weight_map,
    }


def write_piece(
    out: BinaryIO | None, content: list[Stored], params: dict[str, Any], dtype: str
) -> None:
    """Writes one safetensors file: the length and text of its header, then its tensors. `out` is
    None on processes that do not write.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    name = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    for tensor, shape in whole_shapes(content).items():
        start, end = end, end + math.prod(shape) * jnp.dtype(dtype).itemsize
        header[tensor] = {"dtype": name, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if out is not None:
        out.write(len(text).to_bytes(8, "little") + text)
    for _, parts in itertools.groupby(content, key=lambda t: t.name):
        for theirs in _in_file_order(params, list(parts), dtype):
            if out is not None:
                out.write(np.ascontiguousarray(theirs).reshape(-1).view(np.uint8).data)


def _in_file_order(params: dict[str, Any], parts: list[Stored], dtype: str) -> Iterator[np.ndarray]:
    """Yields the contents of a tensor: its parts one after the other, or all of them if they take
    turns.
    """

    def array(t: Stored) -> np.ndarray:
        leaf: Any = params
        for key in t.path:
            leaf = leaf[key]
        gather = _gatherer(_replicated(leaf), dtype, len(t.place), t.axes, t.shape)
        return np.asarray(gather(leaf, t.place))

    if parts[0].turn[1] > 1:
        yield np.stack([array(t) for t in parts], axis=-1)
    else:
        yield from map(array, parts)


@functools.cache
def _gatherer(
    sharding: Sharding | None, dtype: str, separate: int, axes: Axes, shape: tuple[int, ...]
) -> Any:
    """Returns a jitted function from (leaf, index) to the tensor as the file stores it, on every
    device.

    Args:
        sharding: where the tensor goes.
        dtype: dtype of the file.
        separate: leading axes of the leaf with an index; without any, its first rows are taken.
        axes: see `Stored`.
        shape: shape of the tensor.
    """
    order = [i for group in axes for i in group]

    def gather(leaf: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
        ours = leaf if separate else leaf[: shape[0]]
        for i in index:
            ours = jax.lax.dynamic_index_in_dim(ours, i, keepdims=False)
        return ours.astype(dtype).transpose(order).reshape(shape)

    return jax.jit(gather, out_shardings=sharding)


def _replicated(leaf: Any) -> Sharding | None:
    sharding = getattr(leaf, "sharding", None)
    return (
        NamedSharding(sharding.mesh, PartitionSpec())
        if isinstance(sharding, NamedSharding)
        else sharding
    )


def check_target(target: Path, overwrite: bool) -> None:
    """Checks that a directory may be written.

    Raises:
        ConfigError: it is a file, or not empty and `overwrite` is not set.
    """
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file, not a directory")
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise ConfigError(
            f"{target}: exists and is not empty; give another directory, or ask to overwrite it"
        )


def move_into_place(partial: Path, target: Path, overwrite: bool) -> None:
    """Renames `partial` to `target`. The rename replaces an empty target, never one with
    contents.
    """
    old = files.unused(target)
    if overwrite and target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
