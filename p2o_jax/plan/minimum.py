"""What FSDP must exchange in a micro-batch of an update at least, and what the compiled update
does.
"""

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
    """Bytes that a chip sends in a micro-batch along the data and fsdp axes, by kind of
    collective, and the least that it could.
    """

    sent: Mapping[str, float]
    minimum: float

    @property
    def ratio(self) -> float | None:
        """Sent to least; None where nothing need be sent."""
        return sum(self.sent.values()) / self.minimum if self.minimum else None


def exchange(
    spec: ModelSpec, mesh: Mesh, update: Cost, head_turns: float, itemsize: int
) -> Exchange:
    """Of a compiled update, whose outermost loop runs over micro-batches; weights are computed
    with in `itemsize` bytes.
    """
    sent: dict[str, float] = defaultdict(float)
    for collective, n in update.loops[0][1].total((head_turns,)).collectives.items():
        if crosses_batch(collective, mesh):
            sent[collective.kind] += n * collective.wire_bytes
    return Exchange(dict(sent), least(spec, mesh, itemsize))


def least(spec: ModelSpec, mesh: Mesh, itemsize: int) -> float:
    """Every weight split over fsdp gathered for the forward and once more for the backward pass,
    its gradient reduced and scattered: each time a chip sends all parts but one. With a data
    axis, its part of the gradient reduced over that, too."""
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
    """Whether chips with different parts of the batch meet in it: whether it is for more than
    the tensor axis.
    """
    part_of = np.arange(mesh.size) // mesh.shape["tensor"]
    return collective.crosses(part_of.tolist())
