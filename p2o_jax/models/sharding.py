"""Where each weight lives: logical axes to mesh axes, by one table for the learner and one for
rollouts.

The learner splits weights over fsdp and tensor. Rollouts split them over tensor only, so that
decoding never gathers a weight; sequences are split over data x fsdp in both.
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
    "norm": None,
    "rank": None,
}
ROLLOUT: Rules = {**LEARNER, "width": None}
# fewer key/value heads than the tensor axis: every device holds all of them
REPLICATE_IF_UNEVEN = ("kv_head",)


def make_mesh(shape: tuple[int, int, int], devices: Any = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over the given devices, or all. Slices of TPUs lie along data:
    only gradients cross between them.

    Raises:
        ConfigError: data is no multiple of the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    slice_of = [getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices]
    numbers = sorted(set(slice_of))
    if len(numbers) == 1:
        # an axis may be a part of one of a slice's: 2 of v6e:4x4
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
    """A tree of NamedShardings of the shape of the params."""
    return jax.tree.map(
        lambda w: NamedSharding(mesh, partition(w, mesh, rules)), weights(spec), is_leaf=_is_weight
    )


def abstract_params(spec: ModelSpec, mesh: Mesh, rules: Rules, param_dtype: str) -> Any:
    """Shapes, dtypes and shardings of the params, with `model.param_dtype` as given."""
    return jax.tree.map(
        lambda w, s: jax.ShapeDtypeStruct(w.shape, w.dtype(param_dtype), sharding=s),
        weights(spec),
        param_shardings(spec, mesh, rules),
        is_leaf=_is_weight,
    )


def partition(w: Weight, mesh: Mesh, rules: Rules) -> PartitionSpec:
    """The mesh axis of each dimension of a weight."""
    return PartitionSpec(
        *(_mesh_axis(axis, size, mesh, rules) for axis, size in zip(w.axes, w.shape, strict=True))
    )


def problems(spec: ModelSpec, mesh: Mesh, rules: Rules) -> list[str]:
    """A line for every weight that a rule splits unevenly, or over the same mesh axis twice."""
    found = []
    for path, w in jax.tree.leaves_with_path(weights(spec), is_leaf=_is_weight):
        name = ".".join(str(k.key) for k in path)
        used: list[str] = []
        for axis, size in zip(w.axes, w.shape, strict=True):
            mesh_axis = _mesh_axis(axis, size, mesh, rules)
            if mesh_axis is None:
                continue
            if size % mesh.shape[mesh_axis]:
                found.append(
                    f"weight {name}{list(w.shape)}: rule {axis} -> {mesh_axis} splits {size} over"
                    f" {mesh.shape[mesh_axis]} devices"
                )
            if mesh_axis in used:
                found.append(
                    f"weight {name}{list(w.shape)}: two of its axes {w.axes} go to the mesh axis"
                    f" {mesh_axis}"
                )
            used.append(mesh_axis)
    return found


def batch_sharding(mesh: Mesh, *lead: None) -> NamedSharding:
    """Rows over data x fsdp; `lead` adds unsharded leading dimensions."""
    return NamedSharding(mesh, PartitionSpec(*lead, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def gathered(w_VD: jax.Array, mesh: Mesh | None) -> jax.Array:
    """An embedding or output head with its width whole on every device."""
    if mesh is None:
        return w_VD
    return lax.with_sharding_constraint(w_VD, NamedSharding(mesh, PartitionSpec(LEARNER["vocab"])))


def scattered(g_SVD: jax.Array, mesh: Mesh | None) -> jax.Array:
    """The sum over S of what the parts of a batch add to the gradient of a `gathered` weight, in
    g's dtype, split as the weight is.

    With S on data x fsdp an explicit reduce-scatter over rows, then an exchange of rows for
    columns. TPUs reduce the whole on every chip, twice the bytes, where it is left to them; and
    also over more than eight chips at once, or over the minor axis (docs/scale.md).
    """
    if mesh is None or g_SVD.shape[0] == 1:
        return g_SVD.sum(axis=0)
    V, n = g_SVD.shape[1] // mesh.shape["tensor"], mesh.shape["fsdp"]

    def scatter(g_1VD: jax.Array) -> jax.Array:
        g_VD = jnp.pad(g_1VD[0], ((0, -V % n), (0, 0)))
        g_VD = with_layout_constraint(g_VD, Layout(major_to_minor=(0, 1)))
        for groups in _rounds(n):
            g_VD = lax.psum_scatter(g_VD, "fsdp", axis_index_groups=groups, tiled=True)
        return lax.all_to_all(lax.psum(g_VD, "data"), "fsdp", 1, 0, tiled=True)[:V]

    rows, split = PartitionSpec(BATCH_AXES, "tensor"), PartitionSpec("tensor", "fsdp")
    return jax.shard_map(scatter, mesh=mesh, in_specs=rows, out_specs=split, check_vma=False)(g_SVD)


def _rounds(n: int) -> list[list[list[int]]]:
    """Groups of neighbours, at most four where n allows it, in which n devices reduce and
    scatter, round after round.
    """
    sizes: list[int] = []
    while n > 1:
        sizes.insert(0, next((k for k in (4, 3, 2) if n % k == 0), n))
        n //= sizes[0]
    index = np.arange(math.prod(sizes)).reshape(sizes)
    return [np.moveaxis(index, i, -1).reshape(-1, size).tolist() for i, size in enumerate(sizes)]


def num_shards(mesh: Mesh) -> int:
    """Parts that sequences are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _mesh_axis(axis: str, size: int, mesh: Mesh, rules: Rules) -> str | None:
    mesh_axis = rules[axis]
    if mesh_axis is None or mesh.shape[mesh_axis] == 1:
        return None
    return None if axis in REPLICATE_IF_UNEVEN and size % mesh.shape[mesh_axis] else mesh_axis


def _is_weight(x: Any) -> bool:
    return isinstance(x, Weight)
