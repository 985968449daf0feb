"""The memory of a chip while each program runs: the program's own, and what the step keeps."""

from collections.abc import Mapping
from typing import NamedTuple

from p2o_jax.models.device_memory import bytes_per_device, kv_bytes_per_token
from p2o_jax.plan.programs import CompiledProgram, PlannedRun
from p2o_jax.startup import memory_report


class ResidentBytes(NamedTuple):
    """Bytes per chip that a policy step keeps between programs."""

    params: int  # all parameters of the learner
    optimizer: int
    # The frozen initial policy, sharded like the learner's parameters, if a KL term or reflection
    # needs it.
    reference: int
    weights: int  # the sampling model in rollout layout; kept while it samples


class Load(NamedTuple):
    """Bytes per chip while a program runs, by kind."""

    program: str
    params: int
    optimizer: int
    reference: int
    weights: int
    caches: int
    temporaries: int  # including rows, queues and other small arguments
    code: int  # of all programs, which stay loaded

    @property
    def total(self) -> int:
        """The sum of all kinds."""
        return sum(self[1:])


def held(parts: PlannedRun, programs: Mapping[str, CompiledProgram]) -> ResidentBytes:
    """The bytes kept between programs, from the learner's shardings and the sampler's programs."""
    state, shardings = parts.learner.abstract_state(), parts.learner.state_shardings

    first = {name.split()[0]: p.memory for name, p in programs.items()}
    reference = (
        0
        if parts.spec.lora
        else memory_report.reference_bytes(parts.cfg, parts.spec, parts.mesh, parts.learner.dtype)
    )
    optimizer = bytes_per_device(state.opt_state, shardings.opt_state)
    return ResidentBytes(
        first["to_rollout_layout"].arguments[0],
        optimizer,
        reference,
        first["to_rollout_layout"].outputs,
    )


def position_bytes(parts: PlannedRun) -> int:
    """Bytes per chip of the keys and values of one position in all layers."""
    tensor = parts.mesh.shape["tensor"]
    return kv_bytes_per_token(parts.spec, parts.engine.cache_dtype, tensor)


def loads(programs: Mapping[str, CompiledProgram], kept: ResidentBytes) -> list[Load]:
    """The memory of each program."""
    code = sum(p.memory.code for p in programs.values())
    return [_load(p, kept, code) for p in programs.values()]


def _load(program: CompiledProgram, kept: ResidentBytes, code: int) -> Load:
    """The memory of a program.

    Arguments that are kept between programs count once. Weights that the program does not use count
    only as kept.
    """
    name, memory = program.name, program.memory
    first = memory.arguments[0] if memory.arguments else None  # None if too large to compile
    learns = name.startswith(("update", "score", "to_rollout_layout"))
    if name.startswith("update"):
        mine = kept.params + kept.optimizer
    else:
        mine = kept.params if learns else kept.weights
    caches = 0 if learns else memory.caches
    rest = memory.peak - (first or mine) - caches
    weights = 0 if learns else kept.weights
    return Load(name, kept.params, kept.optimizer, kept.reference, weights, caches, rest, code)
