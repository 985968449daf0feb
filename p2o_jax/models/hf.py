"""Hugging Face checkpoints in and out: safetensors files to and from our params, one tensor at a
time.

One table (`tensors`) says which tensor of a file is which slice of our params; `load` and `save`
both follow it.
"""

import functools
import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  numpy learns the name bfloat16, which safetensors needs
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from safetensors import SafetensorError, safe_open

from p2o_jax.config import ConfigError
from p2o_jax.models import hf_config
from p2o_jax.models.spec import ModelSpec, Weight, weights
from p2o_jax.runtime import files
from p2o_jax.runtime.listing import shortened

Bounds = Sequence[tuple[int, int]]  # [start, stop) along each axis
# for each axis of the file's tensor, the axes of ours (without layer) that it fuses
Axes = tuple[tuple[int, ...], ...]

# ours -> (name in the file, axes): torch keeps a linear layer as [out, in], we keep [in, out] with
# heads apart
_TOP: dict[str, tuple[str, Axes]] = {
    "embed": ("model.embed_tokens.weight", ((0,), (1,))),
    "final_norm": ("model.norm.weight", ((0,),)),
    "lm_head": ("lm_head.weight", ((0,), (1,))),
}
_BLOCK: dict[str, tuple[str, Axes]] = {
    "attn_norm": ("input_layernorm.weight", ((0,),)),
    "q": ("self_attn.q_proj.weight", ((1, 2), (0,))),
    "k": ("self_attn.k_proj.weight", ((1, 2), (0,))),
    "v": ("self_attn.v_proj.weight", ((1, 2), (0,))),
    "o": ("self_attn.o_proj.weight", ((2,), (0, 1))),
    "q_bias": ("self_attn.q_proj.bias", ((0, 1),)),
    "k_bias": ("self_attn.k_proj.bias", ((0, 1),)),
    "v_bias": ("self_attn.v_proj.bias", ((0, 1),)),
    "q_norm": ("self_attn.q_norm.weight", ((0,),)),
    "k_norm": ("self_attn.k_norm.weight", ((0,),)),
    "mlp_norm": ("post_attention_layernorm.weight", ((0,),)),
    "gate": ("mlp.gate_proj.weight", ((1,), (0,))),
    "up": ("mlp.up_proj.weight", ((1,), (0,))),
    "down": ("mlp.down_proj.weight", ((1,), (0,))),
}
_DTYPES = ("F32", "BF16", "F16", "F64")
_BY_TOKEN = (_TOP["embed"][0], _TOP["lm_head"][0])  # tensors with a row for each token
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# beside which transformers adds adapters to the weights that it loads
_ADAPTERS = "adapter_config.json"
_LINES = 10  # of each kind of problem
_PIECE_BYTES = 32 * 2**20  # read at one time
# of a file's pages, before they are let go: mapped pages count as resident memory
_MAPPED_BYTES = 64 * 2**20
_TILE = 256  # rows and columns transposed at one time, to stay in the processor's cache


class Stored(NamedTuple):
    """A tensor of a checkpoint's files, and the part of our params that it is."""

    name: str
    path: tuple[str, ...]  # in the params tree
    layer: int | None  # along the leading axis of a stacked leaf
    shape: tuple[int, ...]  # in the file
    axes: Axes


def tensors(spec: ModelSpec) -> list[Stored]:
    """Every tensor of the model's checkpoint, in the order in which it is written."""
    table = weights(spec.base)
    blocks = table["blocks"]
    assert isinstance(blocks, dict)

    def stored(
        name: str, path: tuple[str, ...], layer: int | None, shape: tuple[int, ...], axes: Axes
    ) -> Stored:
        return Stored(
            name, path, layer, tuple(math.prod(shape[i] for i in group) for group in axes), axes
        )

    top = {
        name: stored(_TOP[name][0], (name,), None, w.shape, _TOP[name][1])
        for name, w in table.items()
        if isinstance(w, Weight)
    }
    layers = [
        stored(
            f"model.layers.{i}.{_BLOCK[name][0]}", ("blocks", name), i, w.shape[1:], _BLOCK[name][1]
        )
        for i in range(spec.layers)
        for name, w in blocks.items()
        if isinstance(w, Weight)
    ]
    return [top.pop("embed"), *layers, *top.values()]


def load(
    directory: str | Path, spec: ModelSpec, shardings: Any = None, dtype: str = "float32"
) -> dict[str, Any]:
    """The params in the directory's safetensors files, on the devices that `shardings` (a tree like
    the params') names.

    Each process reads only what its devices hold. On the host there is one device's part of one
    leaf at a time, and on CPU devices that part is the array itself, not a copy. Without shardings
    everything goes to one device. Rows that pad the vocabulary are zero; adapters (`spec.lora`) are
    not in these files.

    Raises:
        ConfigError: with a line for every file or tensor that is missing, broken, misshapen or
            unknown.
    """
    files = _Files(Path(directory))
    table = tensors(spec)
    files.check(table, spec)
    files.check_tied_head(spec)
    by_path: dict[tuple[str, ...], list[Stored]] = defaultdict(list)
    for t in table:
        by_path[t.path].append(t)
    leaves = weights(replace(spec, lora=None))
    if shardings is None:
        shardings = jax.tree.map(
            lambda _: SingleDeviceSharding(jax.local_devices()[0]), leaves, is_leaf=_is_weight
        )

    def leaf(path: Any, w: Weight, sharding: Sharding) -> jax.Array:
        return _load_leaf(
            files, by_path[tuple(k.key for k in path)], w.shape, sharding, jnp.dtype(dtype)
        )

    return jax.tree.map_with_path(leaf, leaves, shardings, is_leaf=_is_weight)


def check(directory: str | Path, spec: ModelSpec) -> None:
    """Reads the headers of the directory's safetensors files, which must hold exactly the model's
    tensors.

    Raises:
        ConfigError: with a line for every file or tensor that is missing, broken, misshapen or
            unknown.
    """
    _Files(Path(directory)).check(tensors(spec), spec)


def save(
    directory: str | Path,
    spec: ModelSpec,
    params: dict[str, Any],
    tokenizer_dir: str | Path | None = None,
    dtype: str = "bfloat16",
    max_shard_bytes: float = 5e9,
    generation_config: dict[str, Any] | None = None,
    overwrite: bool = False,
    chat_template: str = "",
    prompts: dict[str, Any] | None = None,
) -> None:
    """Writes the params (stacked blocks) as a directory that transformers' `from_pretrained` loads.

    Everything goes to a new directory beside it first, which is renamed at the end. With several
    processes all of them call this, and process 0 writes.

    Args:
        tokenizer_dir: whose tokenizer is copied; none without it.
        generation_config: its token ids go into config.json, too; by default the one beside the
            tokenizer.
        overwrite: whether the directory may hold something.
        chat_template: replaces the tokenizer's own.
        prompts: written as p2o_jax.json.

    Raises:
        ConfigError: the directory holds something and `overwrite` is not set, or there is no
            tokenizer in `tokenizer_dir`.
    """
    target, source = (
        Path(os.path.realpath(directory)),
        None if tokenizer_dir is None else Path(tokenizer_dir),
    )
    partial = files.unused(target)  # process 0's: the others write nothing
    writes = jax.process_index() == 0
    with files.removed_on_failure(partial) if writes else nullcontext():
        if writes:
            _check_target(target, overwrite)
            generation = hf_config.generation_config(generation_config, source)
            config = hf_config.write_config(spec, dtype, generation)
            partial.mkdir(parents=True)
            hf_config.write_beside(partial, source, generation, chat_template, prompts)
            hf_config.write_json(partial / "config.json", config)
        pieces = _pieces(tensors(spec), jnp.dtype(dtype).itemsize, max_shard_bytes)
        for file, content in pieces.items():
            with open(partial / file, "xb") if writes else nullcontext() as out:
                _write_piece(out, content, params, dtype)
        if writes:
            if len(pieces) > 1:
                hf_config.write_json(partial / _INDEX, _index(pieces, jnp.dtype(dtype).itemsize))
            _move_into_place(partial, target, overwrite)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {target}")


class _Files:
    """The safetensors files of a directory: which tensors they hold, and access to them."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.file_of: dict[str, Path] = {}
        self.shape_of: dict[str, tuple[int, ...]] = {}
        self.dtype_of: dict[str, str] = {}
        self._open: dict[Path, Any] = {}
        self._mapped_bytes = 0
        problems: list[str] = []
        index = self._read_index()
        for file in sorted(set(index.values())) if index else [directory / _SINGLE]:
            problems += self._read_header(file)
        broken = {file for file in set(index.values()) if file not in self.file_of.values()}
        for name, file in index.items():
            if file not in broken and self.file_of.get(name) != file:
                problems.append(
                    f"{directory / _INDEX}: places {name} in {file.name}, which does not hold it"
                )
        if problems:
            raise ConfigError(*problems)

    def check(self, table: list[Stored], spec: ModelSpec) -> None:
        """Raises ConfigError with a line for every tensor that the table and the files do not
        agree on.
        """
        problems, other_types = [], []
        expected = {t.name: t.shape for t in table}
        for name, shape in expected.items():
            if name not in self.file_of:
                problems.append(f"{self.directory}: tensor {name} is missing")
                continue
            where, found = f"{self.file_of[name]}: tensor {name}", self.shape_of[name]
            if found != shape:
                rule = f"expected {list(shape)}"
                if name in _BY_TOKEN and found[1:] == shape[1:]:
                    rule = f"expected {shape[0]} rows, which is vocab_size in config.json"
                problems.append(f"{where} has shape {list(found)}, {rule}")
            elif self.dtype_of[name] not in _DTYPES:
                other_types.append(
                    f"{where} is {self.dtype_of[name]}; supported: {', '.join(_DTYPES)}"
                )
        unknown = [
            f"{self.file_of[name]}: tensor {name} {list(self.shape_of[name])} is not part of this"
            " model"
            for name in sorted(set(self.file_of) - set(expected))
            if not name.endswith("rotary_emb.inv_freq")
            and not (name == _TOP["lm_head"][0] and spec.tied)
        ]
        problems = [line for lines in (other_types, problems, unknown) for line in _first(lines)]
        if problems:
            raise ConfigError(*problems)

    def check_tied_head(self, spec: ModelSpec) -> None:
        """Raises ConfigError if the files hold a head of their own where config.json ties it to
        the embedding.
        """
        head = _TOP["lm_head"][0]
        if spec.tied and head in self.file_of and not self._equal(head, _TOP["embed"][0]):
            raise ConfigError(
                f"{self.file_of[head]}: {head} differs from the embedding that config.json ties"
                " it to"
            )

    def tensor(self, name: str) -> Any:
        """The tensor, to be cut with slices; only what is cut is read."""
        file = self.file_of[name]
        if self._mapped_bytes > _MAPPED_BYTES:
            self._open.clear()
            self._mapped_bytes = 0
        self._mapped_bytes += 4 * math.prod(self.shape_of[name])
        if file not in self._open:
            self._open[file] = safe_open(file, "numpy")
        return self._open[file].get_slice(name)

    def _equal(self, a: str, b: str) -> bool:
        if self.shape_of[a] != self.shape_of[b] or self.dtype_of[a] != self.dtype_of[b]:
            return False
        rows, columns = self.shape_of[a]
        step = max(1, _PIECE_BYTES // (4 * columns))
        pieces = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
        return all(np.array_equal(self.tensor(a)[piece], self.tensor(b)[piece]) for piece in pieces)

    def _read_index(self) -> dict[str, Path]:
        """The file of each tensor as the index says; empty where there is a single file.

        As in transformers, a model.safetensors is read even where there is an index, too: saving a
        model as one file leaves the index of earlier shards in place.
        """
        if (self.directory / _ADAPTERS).exists():
            raise ConfigError(
                f"{self.directory / _ADAPTERS}: adapters beside a model are not read; merge them"
                " into its weights"
            )
        if (self.directory / _SINGLE).exists():
            return {}
        if (self.directory / _INDEX).exists():
            weight_map = hf_config.read_json(self.directory / _INDEX).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ConfigError(f"{self.directory / _INDEX}: holds no weight_map")
            return {name: self.directory / str(file) for name, file in weight_map.items()}
        found = sorted(
            p.name
            for p in self.directory.glob("*")
            if p.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf")
        )
        instead = f" (it holds {', '.join(found)})" if found else ""
        raise ConfigError(
            f"{self.directory}: holds no weights: neither {_SINGLE} nor {_INDEX}{instead}"
        )

    def _read_header(self, file: Path) -> list[str]:
        try:
            with safe_open(file, "numpy") as opened:
                for name in opened.keys():  # noqa: SIM118  not a mapping
                    part = opened.get_slice(name)
                    self.file_of[name], self.shape_of[name], self.dtype_of[name] = (
                        file,
                        tuple(part.get_shape()),
                        part.get_dtype(),
                    )
        except FileNotFoundError:
            return [f"{file}: missing, but {_INDEX} names it"]
        except (SafetensorError, OSError) as e:
            return [f"{file}: truncated, or no safetensors file ({e})"]
        return []


def _load_leaf(
    files: _Files, stored: list[Stored], shape: tuple[int, ...], sharding: Sharding, dtype: np.dtype
) -> jax.Array:
    devices_of: dict[tuple[tuple[int, int], ...], list[Any]] = defaultdict(list)
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        devices_of[tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))].append(
            device
        )
    arrays: list[jax.Array] = []
    for bounds, devices in devices_of.items():
        part = _read_part(files, stored, shape, bounds, dtype)
        arrays += [jax.device_put(part, device) for device in devices]
        jax.block_until_ready(arrays)
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _read_part(
    files: _Files, stored: list[Stored], shape: tuple[int, ...], bounds: Bounds, dtype: np.dtype
) -> np.ndarray:
    """The part of a leaf inside the bounds, layer by layer if it is stacked."""
    out = _aligned_empty(tuple(stop - start for start, stop in bounds), dtype)
    if stored[0].layer is None:
        start, stop = bounds[0]
        # beyond it are rows that pad the vocabulary
        end = min(max(stored[0].shape[0], start), stop)
        out[end - start :] = 0
        _read_tensor(files, stored[0], shape, ((start, end), *bounds[1:]), out[: end - start])
    else:
        for i, t in enumerate(stored[slice(*bounds[0])]):
            _read_tensor(files, t, shape[1:], bounds[1:], out[i])
    return out


def _read_tensor(
    files: _Files, t: Stored, shape: tuple[int, ...], bounds: Bounds, out: np.ndarray
) -> None:
    """Fills `out` with our tensor of this shape, inside the bounds, piece by piece along the
    file's rows.
    """
    rows = t.axes[0][0]
    # the file's entries for one of our leading axis
    units = [math.prod(shape[i] for i in group[1:]) for group in t.axes]
    leading = [group[0] for group in t.axes]
    order = [i for group in t.axes for i in group]
    row_bytes = 4 * units[0] * math.prod(t.shape[1:])
    start, end = bounds[rows]
    step = max(1, _PIECE_BYTES // row_bytes)
    for first in range(start, end, step):
        part = list(bounds)
        part[rows] = (first, min(first + step, end))
        cut = tuple(
            slice(part[i][0] * unit, part[i][1] * unit)
            for i, unit in zip(leading, units, strict=True)
        )
        block = files.tensor(t.name)[cut].reshape(
            [part[i][1] - part[i][0] if i in leading else shape[i] for i in order]
        )
        ours = block.transpose(np.argsort(order))[
            tuple(slice(None) if i in leading else slice(*part[i]) for i in range(len(shape)))
        ]
        target = out[(slice(None),) * rows + (slice(first - start, part[rows][1] - start),)]
        for tile in _tiles(ours.shape, leading, units) if order != sorted(order) else [...]:
            _copy(ours[tile], target[tile])


def _tiles(
    shape: tuple[int, ...], axes: list[int], units: list[int]
) -> Iterator[tuple[slice, ...]]:
    """Indices that cut an array into tiles of about _TILE x _TILE along two axes."""
    a, b = axes
    step_a, step_b = (max(1, _TILE // unit) for unit in units)
    for i in range(0, shape[a], step_a):
        for j in range(0, shape[b], step_b):
            tile = [slice(None)] * len(shape)
            tile[a], tile[b] = slice(i, i + step_a), slice(j, j + step_b)
            yield tuple(tile)


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """target[...] = source; bfloat16 to float32 by its bits, many times faster than numpy's cast."""
    if source.dtype == jnp.bfloat16 and target.dtype == np.float32:
        halves = target.view(np.uint16).reshape(*target.shape, 2)
        halves[..., 0], halves[..., 1] = 0, source.view(np.uint16)
    else:
        target[...] = source


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array at a multiple of 64 bytes, which JAX takes over on CPU without a copy."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)


def _pieces(table: list[Stored], itemsize: int, max_bytes: float) -> dict[str, list[Stored]]:
    """The tensors of each file to be written; a tensor above the limit has a file of its own."""
    groups: list[list[Stored]] = [[]]
    filled = 0
    for t in table:
        size = math.prod(t.shape) * itemsize
        if groups[-1] and filled + size > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(t)
        filled += size
    if len(groups) == 1:
        return {_SINGLE: groups[0]}
    return {
        f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)
    }


def _index(pieces: dict[str, list[Stored]], itemsize: int) -> dict[str, Any]:
    count = sum(math.prod(t.shape) for content in pieces.values() for t in content)
    weight_map = {t.name: file for file, content in pieces.items() for t in content}
    return {
        "metadata": {"total_parameters": count, "total_size": count * itemsize},
        "weight_map": weight_map,
    }


def _write_piece(
    out: BinaryIO | None, content: list[Stored], params: dict[str, Any], dtype: str
) -> None:
    """Writes one safetensors file: length and text of a header, then the tensors one after the
    other.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    name = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    for t in content:
        start, end = end, end + math.prod(t.shape) * jnp.dtype(dtype).itemsize
        header[t.name] = {"dtype": name, "shape": list(t.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if out is not None:
        out.write(len(text).to_bytes(8, "little") + text)
    for t in content:
        leaf: Any = params
        for key in t.path:
            leaf = leaf[key]
        theirs = np.asarray(_gatherer(_replicated(leaf), dtype, t.axes, t.shape)(leaf, t.layer))
        if out is not None:
            out.write(np.ascontiguousarray(theirs).reshape(-1).view(np.uint8).data)


@functools.cache
def _gatherer(sharding: Sharding | None, dtype: str, axes: Axes, shape: tuple[int, ...]) -> Any:
    """A jitted function: leaf and layer (None: not stacked) → the tensor as the file has it, on
    every device.
    """
    order = [i for group in axes for i in group]

    def gather(leaf: jax.Array, layer: jax.Array | None) -> jax.Array:
        ours = (
            leaf[: shape[0]]
            if layer is None
            else jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
        )
        return ours.astype(dtype).transpose(order).reshape(shape)

    return jax.jit(gather, out_shardings=sharding)


def _replicated(leaf: Any) -> Sharding | None:
    sharding = getattr(leaf, "sharding", None)
    return (
        NamedSharding(sharding.mesh, PartitionSpec())
        if isinstance(sharding, NamedSharding)
        else sharding
    )


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file, not a directory")
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise ConfigError(
            f"{target}: exists and is not empty; give another directory, or ask to overwrite it"
        )


def _move_into_place(partial: Path, target: Path, overwrite: bool) -> None:
    """Renames one to the other; an empty target is replaced by the rename itself, and no other is."""
    old = files.unused(target)
    if overwrite and target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _first(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    return shortened(lines, _LINES, what="tensors like the last")


def _is_weight(x: Any) -> bool:
    return isinstance(x, Weight)
