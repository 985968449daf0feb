"""Placement of weights: maps logical axes to mesh axes, with one table for the learner and one for
rollouts.

The learner splits weights over fsdp and tensor. Rollouts split them over tensor only, so decoding
never gathers a weight. Both split sequences over data x fsdp.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import mesh_utils
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from p2o_jax.config import ConfigError
from p2o_jax.models.spec import ModelSpec, Weight, weights

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
Rules = Mapping[str, str | None]

LEARNER: Rules = {
    "layer": None,
    "vocab": "tensor",
    "width": "fsdp",
    "head": "tensor",
    "kv_head": "tensor",
    "channel": None,
    "mlp": "tensor",
    "router": None,
    "expert": "tensor",
    "expert_mlp": None,
    "conv": None,
    "norm": None,
    "rank": None,
}
ROLLOUT: Rules = {**LEARNER, "width": None}
# replicated if there are fewer key/value heads than devices on the tensor axis
REPLICATE_IF_UNEVEN = ("kv_head",)


def make_mesh(shape: tuple[int, int, int], devices: Any = None) -> Mesh:
    """Returns the mesh (data, fsdp, tensor) over the given devices, or all. TPU slices are placed
    along data, so only gradients cross between slices.

    Raises:
        ConfigError: data is not a multiple of the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    slice_of = [getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices]
    numbers = sorted(set(slice_of))
    if len(numbers) == 1:
        # a mesh axis may be part of a physical axis, e.g. 2 of 4 in v6e:4x4
        split = devices[0].platform == "tpu"
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=split)
        return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)
    data, fsdp, tensor = shape
    if data % len(numbers):
        raise ConfigError(
            f"config.mesh.data={data} must be a multiple of the number of slices, {len(numbers)}"
        )
    inner = (data // len(numbers), fsdp, tensor)
    parts = [
        make_mesh(inner, [d for d, s in zip(devices, slice_of, strict=True) if s == number]).devices
        for number in numbers
    ]
    return Mesh(np.concatenate(parts), AXES, axis_types=(AxisType.Auto,) * 3)


def param_shardings(spec: ModelSpec, mesh: Mesh, rules: Rules) -> Any:
    """Returns a tree of NamedShardings with the structure of the params."""
    return jax.tree.map(
        lambda w: NamedSharding(mesh, partition(w, mesh, rules)), weights(spec), is_leaf=_is_weight
    )


def abstract_params(spec: ModelSpec, mesh: Mesh, rules: Rules, param_dtype: str) -> Any:
    """Returns shapes, dtypes and shardings of the params. `param_dtype` is model.param_dtype."""
    return jax.tree.map(
        lambda w, s: jax.ShapeDtypeStruct(w.shape, w.dtype(param_dtype), sharding=s),
        weights(spec),
        param_shardings(spec, mesh, rules),
        is_leaf=_is_weight,
    )


def partition(w: Weight, mesh: Mesh, rules: Rules) -> PartitionSpec:
    """Returns the mesh axis of each dimension of a weight."""
    return PartitionSpec(
        *(_mesh_axis(axis, size, mesh, rules) for axis, size in zip(w.axes, w.shape, strict=True))
    )


def problems(spec: ModelSpec, mesh: Mesh, rules: Rules) -> list[str]:
    """Returns a line for every weight that a rule splits unevenly, or twice over the same mesh
    axis.
    """
    lines = []
    for path, w in jax.tree.leaves_with_path(weights(spec), is_leaf=_is_weight):
        name = ".".join(str(k.key) for k in path)
        used: list[str] = []
        for axis, size in zip(w.axes, w.shape, strict=True):
            mesh_axis = _mesh_axis(axis, size, mesh, rules)
            if mesh_axis is None:
                continue
            if size % mesh.shape[mesh_axis]:
                lines.append(
                    f"weight {name}{list(w.shape)}: rule {axis} -> {mesh_axis} splits {size} over"
                    f" {mesh.shape[mesh_axis]} devices"
                )
            if mesh_axis in used:
                lines.append(
                    f"weight {name}{list(w.shape)}: two of its axes {w.axes} go to the mesh axis"
                    f" {mesh_axis}"
                )
            used.append(mesh_axis)
    return lines


def divides(spec: ModelSpec, tensor: int) -> bool:
    """Whether a tensor axis of this size splits all weights evenly that it splits, but for the
    vocabulary, which can be padded.
    """
    flexible = ("vocab", *REPLICATE_IF_UNEVEN)
    return not any(
        size % tensor
        for w in jax.tree.leaves(weights(spec), is_leaf=_is_weight)
        for axis, size in zip(w.axes, w.shape, strict=True)
        if ROLLOUT[axis] == "tensor" and axis not in flexible
    )


def batch_sharding(mesh: Mesh, *lead: None) -> NamedSharding:
    """Splits rows over data x fsdp; `lead` adds unsharded leading dimensions."""
    return NamedSharding(mesh, PartitionSpec(*lead, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def gathered(w_VD: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Returns an embedding or output head with its width axis whole on every device."""
    if mesh is None:
        return w_VD
    return lax.with_sharding_constraint(w_VD, NamedSharding(mesh, PartitionSpec(LEARNER["vocab"])))


def scattered(g_WVD: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Returns the sum over W (parts of a batch) of gradients of a `gathered` weight, in g's dtype,
    split like the weight.

    With W on data x fsdp this is an explicit reduce-scatter over rows, followed by an exchange of
    rows for columns. Left to the compiler, TPUs reduce the whole array on every chip, which is
    twice the bytes; the same happens over more than eight chips at once, or over the minor axis
    (docs/scale.md).
    """
    if mesh is None or g_WVD.shape[0] == 1:
        return g_WVD.sum(axis=0)
    V, n = g_WVD.shape[1] // mesh.shape["tensor"], mesh.shape["fsdp"]

    def scatter(g_1VD: jax.Array) -> jax.Array:
        g_VD = jnp.pad(g_1VD[0], ((0, -V % n), (0, 0)))
        g_VD = with_layout_constraint(g_VD, Layout(major_to_minor=(0, 1)))
        for groups in _rounds(n):
            g_VD = lax.psum_scatter(g_VD, "fsdp", axis_index_groups=groups, tiled=True)
        return lax.all_to_all(lax.psum(g_VD, "data"), "fsdp", 1, 0, tiled=True)[:V]

    rows, split = PartitionSpec(BATCH_AXES, "tensor"), PartitionSpec("tensor", "fsdp")
    return jax.shard_map(scatter, mesh=mesh, in_specs=rows, out_specs=split, check_vma=False)(g_WVD)


def _rounds(n: int) -> list[list[list[int]]]:
    """Returns groups of neighbours, of at most four if n allows it, in which n devices reduce and
    scatter in rounds.
    """
    sizes: list[int] = []
    while n > 1:
        sizes.insert(0, next((k for k in (4, 3, 2) if n % k == 0), n))
        n //= sizes[0]
    index = np.arange(math.prod(sizes)).reshape(sizes)
    return [np.moveaxis(index, i, -1).reshape(-1, size).tolist() for i, size in enumerate(sizes)]


def num_shards(mesh: Mesh) -> int:
    """Returns the number of parts that sequences are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _mesh_axis(axis: str, size: int, mesh: Mesh, rules: Rules) -> str | None:
    mesh_axis = rules[axis]
    if mesh_axis is None or mesh.shape[mesh_axis] == 1:
        return None
    return None if axis in REPLICATE_IF_UNEVEN and size % mesh.shape[mesh_axis] else mesh_axis


def _is_weight(x: Any) -> bool:
    return isinstance(x, Weight)
