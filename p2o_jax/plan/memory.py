"""What lies in a chip's memory while each program runs: its own needs, and what the step keeps
there meanwhile.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from p2o_jax.plan.programs import CompiledProgram, PlannedRun, shard_bytes
from p2o_jax.startup import components


class ResidentBytes(NamedTuple):
    """Bytes on a chip of what a policy step keeps from program to program."""

    params: int  # the learner's, all of them
    optimizer: int
    # the frozen initial policy, split as the learner's params are, where a KL term asks for it or
    # it reflects
    reference: int
    weights: int  # the policy, or what reflects, laid out for decoding; kept while it samples


class Load(NamedTuple):
    """Bytes on a chip while a program runs, by kind. `code` is that of all programs, which stay
    loaded.
    """

    program: str
    params: int
    optimizer: int
    reference: int
    weights: int
    caches: int
    temporaries: int  # with rows, queues and other small arguments
    code: int

    @property
    def total(self) -> int:
        return sum(self[1:])


def held(parts: PlannedRun, programs: Mapping[str, CompiledProgram]) -> ResidentBytes:
    """What is kept, by the shardings of the learner and what the sampler's programs take."""
    state, shardings = parts.learner.abstract_state(), parts.learner.state_shardings

    def size(tree: object, split: object) -> int:
        return sum(map(shard_bytes, jax.tree.leaves(tree), jax.tree.leaves(split)))

    first = {name.split()[0]: p.memory for name, p in programs.items()}
    reference = (
        0
        if parts.spec.lora
        else components.reference_bytes(parts.cfg, parts.spec, parts.mesh, parts.learner.dtype)
    )
    optimizer = size(state.opt_state, shardings.opt_state)
    return ResidentBytes(
        first["to_rollout_layout"].arguments[0],
        optimizer,
        reference,
        first["to_rollout_layout"].outputs,
    )


def position_bytes(parts: PlannedRun) -> int:
    """Bytes on a chip of one position's keys and values in all layers."""
    spec, split = parts.spec, parts.mesh.shape["tensor"]
    heads = spec.kv_heads if spec.kv_heads % split else spec.kv_heads // split
    vector = spec.head_dim * jnp.dtype(parts.engine.cache_dtype).itemsize + (
        4 if parts.engine.cache_dtype == jnp.int8 else 0
    )
    return 2 * spec.layers * heads * vector


def loads(programs: Mapping[str, CompiledProgram], kept: ResidentBytes) -> list[Load]:
    """A line for each program."""
    code = sum(p.memory.code for p in programs.values())
    return [_load(p, kept, code) for p in programs.values()]


def _load(program: CompiledProgram, kept: ResidentBytes, code: int) -> Load:
    """What a program takes of what is kept counts once; of weights that it leaves out only what
    is kept does.
    """
    name, memory = program.name, program.memory
    first = memory.arguments[0] if memory.arguments else None  # None: too large to be compiled
    learns = name.startswith(("update", "score", "to_rollout_layout"))
    if name.startswith("update"):
        mine = kept.params + kept.optimizer
    else:
        mine = kept.params if learns else kept.weights
    caches = 0 if learns else memory.caches
    rest = memory.peak - (first or mine) - caches
    weights = 0 if learns else kept.weights
    return Load(name, kept.params, kept.optimizer, kept.reference, weights, caches, rest, code)
