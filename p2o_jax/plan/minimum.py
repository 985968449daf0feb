"""The data that a micro-batch of a compiled update exchanges, and the minimum for FSDP."""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from p2o_jax.models import lora, sharding
from p2o_jax.models.spec import ModelSpec, Weight, weights
from p2o_jax.plan.cost import Collective, Cost


class Exchange(NamedTuple):
    """Bytes that a chip sends per micro-batch along the axes data and fsdp."""

    sent: Mapping[str, float]  # by kind of collective
    minimum: float

    @property
    def ratio(self) -> float | None:
        """The bytes sent divided by the minimum; None if the minimum is 0."""
        return sum(self.sent.values()) / self.minimum if self.minimum else None


def exchange(
    spec: ModelSpec, mesh: Mesh, update: Cost, head_turns: float, itemsize: int
) -> Exchange:
    """The exchange of a compiled update, whose outermost loop runs over micro-batches.

    Args:
        spec: the model.
        mesh: the devices.
        update: the cost of the compiled update.
        head_turns: iterations of the output head's loop per micro-batch.
        itemsize: bytes per weight in the compute dtype.
    """
    sent: dict[str, float] = defaultdict(float)
    for collective, n in update.loops[0][1].total((head_turns,)).collectives.items():
        if crosses_batch(collective, mesh):
            sent[collective.kind] += n * collective.wire_bytes
    return Exchange(dict(sent), least(spec, mesh, itemsize))


def least(spec: ModelSpec, mesh: Mesh, itemsize: int) -> float:
    """The least bytes that a chip must send per micro-batch.

    Every weight split over fsdp is gathered for the forward pass and again for the backward pass,
    and its gradient is reduced and scattered. Each time, a chip sends all parts but one. With a
    data axis, the chip's part of the gradient is also reduced over that axis.
    """
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    trained, frozen = lora.split(spec, weights(spec))
    split = {False: 0.0, True: 0.0}  # bytes of weights on a chip, gathered: frozen, trained
    for is_trained, tree in ((False, frozen), (True, trained)):
        for w in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Weight)):
            axes = sharding.partition(w, mesh, sharding.LEARNER)
            if "fsdp" in axes:
                split[is_trained] += (
                    float(np.prod(w.shape))
                    * itemsize
                    / (mesh.shape["tensor"] if "tensor" in axes else 1)
                )
    gathers = 2 * (split[False] + split[True]) * (fsdp - 1) / fsdp
    return gathers + split[True] * ((fsdp - 1) / fsdp + 2 * (data - 1) / data / fsdp)


def crosses_batch(collective: Collective, mesh: Mesh) -> bool:
    """Whether a collective joins chips with different parts of the batch."""
    part_of = np.arange(mesh.size) // mesh.shape["tensor"]
    return collective.crosses(part_of.tolist())
