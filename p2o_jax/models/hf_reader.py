"""Reading of safetensors files: which tensors they hold, and parts of tensors into arrays on
devices.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from jax.sharding import Sharding
from safetensors import SafetensorError, safe_open

from p2o_jax.config import ConfigError
from p2o_jax.models import hf_config
from p2o_jax.models.families import COMPOSITES, FAMILIES
from p2o_jax.models.hf_tensors import INDEX_FILE, SINGLE_FILE, Stored, whole_shapes
from p2o_jax.models.spec import ModelSpec
from p2o_jax.runtime.listing import shortened

Bounds = Sequence[tuple[int, int]]  # [start, stop) along each axis

_DTYPES = ("F32", "BF16", "F16", "F64")
# if present, transformers adds adapters to the weights
_ADAPTERS = "adapter_config.json"
# prefixes of the text model's tensors in checkpoints of several models, older and newer
_TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "lm_head.": "lm_head.",
}
_LINES = 10  # reported lines per kind of problem
_PIECE_BYTES = 32 * 2**20  # bytes read at a time
# mapped bytes before files are closed: mapped pages count as resident memory
_MAPPED_BYTES = 64 * 2**20
_TILE = 256  # rows and columns transposed at a time, to fit the processor's cache


class TensorFiles:
    """The safetensors files of a directory: which tensors they hold, and access to them.

    Of a checkpoint of several models, these are the tensors of the text model, under the names that
    they have in a checkpoint of its own.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.file_of: dict[str, Path] = {}
        self.shape_of: dict[str, tuple[int, ...]] = {}
        self.dtype_of: dict[str, str] = {}
        self._name_in_file: dict[str, str] = {}
        self._composite = _is_composite(directory)
        self._open: dict[Path, Any] = {}
        self._mapped_bytes = 0
        problems: list[str] = []
        index = self._read_index()
        for file in sorted(set(index.values())) if index else [directory / SINGLE_FILE]:
            problems += self._read_header(file)
        broken = {file for file in set(index.values()) if file not in self.file_of.values()}
        for name, file in index.items():
            if file not in broken and self.file_of.get(name) != file:
                problems.append(
                    f"{directory / INDEX_FILE}: maps {name} to {file.name}, which lacks it"
                )
        if problems:
            raise ConfigError(*problems)

    def check(self, table: list[Stored], spec: ModelSpec) -> None:
        """Checks that the files hold exactly the tensors of the table.

        Raises:
            ConfigError: with a line for every mismatch.
        """
        problems, other_types = [], []
        embed, head = _token_tensors(spec)
        expected = whole_shapes(table)
        for name, shape in expected.items():
            if name not in self.file_of:
                problems.append(f"{self.directory}: tensor {name} is missing")
                continue
            where, actual = f"{self.file_of[name]}: tensor {name}", self.shape_of[name]
            if actual != shape:
                rule = f"expected {list(shape)}"
                if name in (embed, head) and actual[1:] == shape[1:]:
                    rule = f"expected {shape[0]} rows, which is vocab_size in config.json"
                problems.append(f"{where} has shape {list(actual)}, {rule}")
            elif self.dtype_of[name] not in _DTYPES:
                other_types.append(
                    f"{where} is {self.dtype_of[name]}; supported: {', '.join(_DTYPES)}"
                )
        unknown = [
            f"{self.file_of[name]}: tensor {name} {list(self.shape_of[name])} is not part of this"
            " model"
            for name in sorted(set(self.file_of) - set(expected))
            if not name.endswith("rotary_emb.inv_freq")
            and not name.startswith(FAMILIES[spec.family].ignored)
            and not (name == head and spec.tied)
        ]
        problems = [line for lines in (other_types, problems, unknown) for line in _first(lines)]
        if problems:
            raise ConfigError(*problems)

    def check_tied_head(self, spec: ModelSpec) -> None:
        """Checks that a tied output head, if stored, equals the embedding.

        Raises:
            ConfigError: it differs.
        """
        embed, head = _token_tensors(spec)
        if spec.tied and head in self.file_of and not self._equal(head, embed):
            raise ConfigError(
                f"{self.file_of[head]}: {head} differs from the embedding that config.json ties"
                " it to"
            )

    def tensor(self, name: str) -> Any:
        """Returns the tensor, to be sliced; only slices are read."""
        file = self.file_of[name]
        if self._mapped_bytes > _MAPPED_BYTES:
            self._open.clear()
            self._mapped_bytes = 0
        self._mapped_bytes += 4 * math.prod(self.shape_of[name])
        if file not in self._open:
            self._open[file] = safe_open(file, "numpy")
        return self._open[file].get_slice(self._name_in_file[name])

    def _equal(self, a: str, b: str) -> bool:
        if self.shape_of[a] != self.shape_of[b] or self.dtype_of[a] != self.dtype_of[b]:
            return False
        rows, columns = self.shape_of[a]
        step = max(1, _PIECE_BYTES // (4 * columns))
        pieces = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
        return all(np.array_equal(self.tensor(a)[piece], self.tensor(b)[piece]) for piece in pieces)

    def _read_index(self) -> dict[str, Path]:
        """Returns the file of each tensor by the index; empty for a single file.

        As in transformers, model.safetensors takes precedence over an index: saving a model as one
        file leaves the index of earlier shards in place.
        """
        if (self.directory / _ADAPTERS).exists():
            raise ConfigError(
                f"{self.directory / _ADAPTERS}: adapters beside a model are not read; merge them"
                " into its weights"
            )
        if (self.directory / SINGLE_FILE).exists():
            return {}
        if (self.directory / INDEX_FILE).exists():
            weight_map = hf_config.read_json(self.directory / INDEX_FILE).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ConfigError(f"{self.directory / INDEX_FILE}: holds no weight_map")
            return {
                name: self.directory / str(file)
                for given, file in weight_map.items()
                if (name := self._name(given))
            }
        names = sorted(
            p.name
            for p in self.directory.glob("*")
            if p.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf")
        )
        instead = f" (it holds {', '.join(names)})" if names else ""
        raise ConfigError(
            f"{self.directory}: holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE}{instead}"
        )

    def _read_header(self, file: Path) -> list[str]:
        try:
            with safe_open(file, "numpy") as opened:
                for given in opened.keys():  # noqa: SIM118  not a mapping
                    name = self._name(given)
                    if not name:
                        continue
                    self._name_in_file[name] = given
                    part = opened.get_slice(given)
                    self.file_of[name], self.shape_of[name], self.dtype_of[name] = (
                        file,
                        tuple(part.get_shape()),
                        part.get_dtype(),
                    )
        except FileNotFoundError:
            return [f"{file}: missing, but {INDEX_FILE} names it"]
        except (SafetensorError, OSError) as e:
            return [f"{file}: truncated, or not a safetensors file ({e})"]
        return []

    def _name(self, given: str) -> str:
        """Returns our name of a tensor; empty if it is not part of the text model."""
        if not self._composite:
            return given
        for theirs, ours in _TEXT_PREFIXES.items():
            if given.startswith(theirs):
                return ours + given.removeprefix(theirs)
        return ""


def _is_composite(directory: Path) -> bool:
    path = directory / "config.json"
    return path.exists() and hf_config.read_json(path).get("model_type") in COMPOSITES


def load_leaf(
    files: TensorFiles,
    stored: list[Stored],
    shape: tuple[int, ...],
    sharding: Sharding,
    dtype: np.dtype,
) -> jax.Array:
    """Reads one leaf of the params onto the devices of its sharding.

    Args:
        files: the checkpoint's files.
        stored: the tensors that make up the leaf, one per layer if it is stacked, or per expert of
            each layer.
        shape: global shape of the leaf.
        sharding: its sharding.
        dtype: its dtype.
    """
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
    files: TensorFiles,
    stored: list[Stored],
    shape: tuple[int, ...],
    bounds: Bounds,
    dtype: np.dtype,
) -> np.ndarray:
    """Reads the part of a leaf within the bounds, one tensor after the other."""
    out = _aligned_empty(tuple(stop - start for start, stop in bounds), dtype)
    if not stored[0].place:
        start, stop = bounds[0]
        # rows beyond pad the vocabulary
        end = min(max(stored[0].shape[0], start), stop)
        out[end - start :] = 0
        _read_tensor(files, stored[0], shape, ((start, end), *bounds[1:]), out[: end - start])
    else:
        separate = len(stored[0].place)
        by_place = {t.place: t for t in stored}
        for index in itertools.product(*(range(*bound) for bound in bounds[:separate])):
            place = tuple(i - start for i, (start, _) in zip(index, bounds, strict=False))
            _read_tensor(files, by_place[index], shape[separate:], bounds[separate:], out[place])
    return out


def _read_tensor(
    files: TensorFiles, t: Stored, shape: tuple[int, ...], bounds: Bounds, out: np.ndarray
) -> None:
    """Fills `out` with our tensor of this shape, within the bounds, in pieces along the file's
    rows.
    """
    rows = t.axes[0][0]
    # entries of the file per index of our leading axis
    units = [math.prod(shape[i] for i in group[1:]) for group in t.axes]
    leading = [group[0] for group in t.axes]
    order = [i for group in t.axes for i in group]
    row_bytes = 4 * units[0] * math.prod(t.shape[1:])
    start, end = bounds[rows]
    step = max(1, _PIECE_BYTES // row_bytes)
    for first in range(start, end, step):
        part = list(bounds)
        part[rows] = (first, min(first + step, end))
        starts = [t.first_row] + [0] * (len(leading) - 1)
        cut = [
            slice(begin + part[i][0] * unit, begin + part[i][1] * unit)
            for i, unit, begin in zip(leading, units, starts, strict=True)
        ]
        mine, turns = t.turn
        cut[-1] = slice(cut[-1].start * turns, cut[-1].stop * turns)
        block = files.tensor(t.name)[tuple(cut)][..., mine::turns].reshape(
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
    """Yields indices that cut an array into tiles of about _TILE x _TILE along two axes."""
    a, b = axes
    step_a, step_b = (max(1, _TILE // unit) for unit in units)
    for i in range(0, shape[a], step_a):
        for j in range(0, shape[b], step_b):
            tile = [slice(None)] * len(shape)
            tile[a], tile[b] = slice(i, i + step_a), slice(j, j + step_b)
            yield tuple(tile)


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """Copies source to target. bfloat16 becomes float32 by its bits, many times faster than NumPy's
    cast.
    """
    if source.dtype == jnp.bfloat16 and target.dtype == np.float32:
        halves = target.view(np.uint16).reshape(*target.shape, 2)
        halves[..., 0], halves[..., 1] = 0, source.view(np.uint16)
    else:
        target[...] = source


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an uninitialized array aligned to 64 bytes, which JAX uses on CPU without a copy."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)


def _token_tensors(spec: ModelSpec) -> tuple[str, str]:
    """Returns the names of embedding and output head, which have a row per token."""
    names = FAMILIES[spec.family].top_tensors
    return names["embed"][0], names["lm_head"][0]


def _first(lines: list[str]) -> list[str]:
    """Returns the first lines, and how many more there are."""
    return shortened(lines, _LINES, what="tensors like the last")
