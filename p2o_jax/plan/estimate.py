"""A lower bound on the time of a P²O step (a roofline estimate).

The time of a phase is the largest of the times that its operations, its memory traffic and its
collectives need at the chip's peak speeds. Real runs are slower.

Operations and collectives are counted in the compiled programs. Memory traffic and the operations
of attention kernels, which are not visible in the programs' text, are computed from sizes.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from p2o_jax import config
from p2o_jax.gepa import budget
from p2o_jax.models import flops
from p2o_jax.models.device_memory import state_bytes
from p2o_jax.models.spec import LayerType, ModelSpec, num_params
from p2o_jax.plan.chips import Topology
from p2o_jax.plan.cost import Cost, Kernel
from p2o_jax.plan.memory import ResidentBytes, position_bytes
from p2o_jax.plan.minimum import Exchange, exchange
from p2o_jax.plan.programs import CompiledProgram, PlannedRun, bucket_of
from p2o_jax.rollout import layer_caches
from p2o_jax.rollout.prefill import chunk_of

# The fraction of decode slots in use, and of real tokens in packed rows, as measured on CPUs
# (docs/performance.md).
BUSY = 0.9
# Kernels of grouped products: of rows and the experts' weights, of rows and their gradient.
GROUPED = ("ragged-dot-none", "tgmm")
# The number of matrix products in a splash kernel, by the prefix of its name.
SPLASH = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}


class Workload(NamedTuple):
    """The assumed questions."""

    prompt: int  # mean tokens
    response: int  # mean tokens
    questions: int  # per epoch
    frac_hard: float = 0.3  # fraction of hard questions


@dataclass(frozen=True)
class Traffic:
    """The number of collectives of a kind, and the bytes of their whole arrays on a chip."""

    count: float
    bytes: float


class PhaseCost(NamedTuple):
    """The cost of a phase of a step on one chip."""

    name: str
    flops: float
    hbm: float  # bytes read from and written to memory
    ici: float  # bytes sent to other chips of the slice
    dcn: float  # bytes sent to other slices
    traffic: Mapping[str, Traffic]  # by kind of collective

    def seconds(self, topology: Topology) -> dict[str, float]:
        """The seconds that each resource needs."""
        chip = topology.chip
        return {
            "compute": self.flops / chip.flops,
            "memory": self.hbm / chip.hbm_bytes,
            "network": self.ici / chip.ici_bytes + self.dcn / chip.dcn_bytes,
        }

    def times(self, n: float, name: str) -> "PhaseCost":
        """The cost of `n` such phases, under another name."""
        traffic = {kind: Traffic(t.count * n, t.bytes * n) for kind, t in self.traffic.items()}
        return PhaseCost(name, self.flops * n, self.hbm * n, self.ici * n, self.dcn * n, traffic)


class Estimate(NamedTuple):
    """The estimate of a policy step with its share of a prompt phase."""

    phases: tuple[PhaseCost, ...]
    seconds: float
    generated_tokens: float  # by the policy step itself and by its share of GEPA
    mfu: float  # counts the operations of `models.flops`: no recomputation, no padding
    dollars_per_million: float | None  # generated tokens
    exchange: Exchange  # of a micro-batch of the update
    # Reshardings per GEPA iteration: of the frozen model for reflection, and of the policy after
    # it. Each costs as much as the phase `reshard`.
    lay_outs: int


def estimate(
    parts: PlannedRun,
    programs: Mapping[str, CompiledProgram],
    kept: ResidentBytes,
    topology: Topology,
    work: Workload,
    price: float | None,
) -> Estimate:
    """Estimates a step of a config whose programs all fit.

    Args:
        parts: the planned run.
        programs: its compiled programs, by name.
        kept: the bytes that stay in memory between programs.
        topology: the chips.
        work: the assumed questions.
        price: dollars per chip and hour, or None.
    """
    r, devices = parts.cfg.rollout, parts.mesh.size
    sequences = r.questions * r.group_size
    slice_of = [device * topology.slices // devices for device in range(devices)]
    rollout = _rollout(parts, programs, kept, slice_of, work)
    steps_per_epoch = max(work.questions // r.questions, 1)
    # GEPA's rollouts as a fraction of the step's own
    share = _gepa_rollouts(parts.cfg, work) / steps_per_epoch / sequences
    phases = (
        _of_program(
            "reshard", programs["to_rollout_layout"].cost, (), slice_of, kept.params + kept.weights
        ),
        *rollout,
        *_learning(parts, programs, kept, slice_of, work),
        _added(*rollout).times(share, "gepa, a step's share"),
    )
    seconds = sum(max(p.seconds(topology).values()) for p in phases)
    tokens = sequences * work.response * (1 + share)
    useful = _useful_flops(parts, work, share)
    mfu = useful / (seconds * devices * topology.chip.flops)
    paid = (
        None
        if price is None
        else price * math.prod(topology.shape) * topology.slices * seconds / 3600
    )
    update = programs["update"].cost
    assert update is not None
    exchanged = exchange(
        parts.spec,
        parts.mesh,
        update,
        _head_turns(parts, work),
        jnp.dtype(parts.engine.dtype).itemsize,
    )
    lay_outs = 2 if config.reflector(parts.cfg) == "reference" else 0
    return Estimate(phases, seconds, tokens, mfu, paid and paid / tokens * 1e6, exchanged, lay_outs)


def _gepa_rollouts(cfg: config.Config, work: Workload) -> float:
    """The rollouts of a prompt phase on the hard questions, from its budget."""
    if not config.reflector(cfg):
        return 0.0
    hard = work.frac_hard * work.questions
    dev = min(cfg.gepa.dev_size, hard / 2) if cfg.gepa.dev_size >= 1 else cfg.gepa.dev_size * hard
    return budget.total(cfg.gepa, int(hard - dev), int(dev))


def _rollout(
    parts: PlannedRun,
    programs: Mapping[str, CompiledProgram],
    kept: ResidentBytes,
    slice_of: Sequence[int],
    work: Workload,
) -> tuple[PhaseCost, PhaseCost]:
    """The costs of prefilling a step's prompts, one per question, and of decoding all rollouts.

    Args:
        parts: the planned run.
        programs: its compiled programs, by name.
        kept: the bytes that stay in memory between programs.
        slice_of: the slice of each device.
        work: the assumed questions.
    """
    r, spec, shards = parts.engine.cfg, parts.spec, parts.engine.num_shards
    tensor = parts.mesh.shape["tensor"]
    prefill, decode = (
        next(p for name, p in programs.items() if name.startswith(kind))
        for kind in ("prefill", "decode")
    )
    assert decode.cost is not None and prefill.cost is not None
    chunk = chunk_of(bucket_of(parts.cfg, work.prompt))
    pieces = max(shape[0] for shape in prefill.shapes if len(shape) == 2 and shape[1] == chunk)
    calls = math.ceil(r.questions / pieces)
    levels = [
        _of_program("prefill", prefill.cost, (level,), slice_of, kept.weights, tensor)
        for level in range(math.ceil(work.prompt / chunk))
    ]
    turn = decode.cost.loops[0][1]
    steps = r.questions * r.group_size * work.response / r.slots / BUSY
    slots = r.slots // shards
    shared, whole = work.prompt / r.group_size, work.prompt + work.response / 2
    reads = slots * _positions(parts, shared + work.response / 2, whole) * position_bytes(parts)
    reads += 2 * slots * state_bytes(spec, tensor)  # read and written
    filled = (slots / work.response,)  # in a step; loops in it copy a prompt into each slot
    step = turn.total(filled)
    attention = 0.0
    if step.kernels:
        heads = spec.heads / tensor
        attention = 4 * heads * spec.head_dim * slots * _positions(parts, whole, whole)
        attention *= len(_with_keys(spec))
    phase = _of_program("decode", turn, filled, slice_of, kept.weights + reads, tensor)
    return (
        functools.reduce(_added, levels).times(calls, "prefill"),
        phase._replace(flops=phase.flops + attention).times(steps, "decode"),
    )


def _positions(parts: PlannedRun, full: float, sliding: float) -> float:
    """Returns the cached positions that a slot reads, the mean over layers that keep keys.

    Args:
        parts: the planned run.
        full: positions read by layers that keep all.
        sliding: those of a slot's own ring, if it is not full earlier.
    """
    longest = parts.engine.longest(parts.engine.capacities[-1])

    def read(layer: LayerType) -> float:
        ring = layer_caches.ring(layer, longest)
        return min(ring, sliding) if ring else full

    layers = _with_keys(parts.spec)
    return sum(map(read, layers)) / len(layers)


def _with_keys(spec: ModelSpec) -> list[LayerType]:
    """Returns the types of the layers that keep keys and values, not a state."""
    return [layer for layer in spec.layer_types if not layer.delta]


def _learning(
    parts: PlannedRun,
    programs: Mapping[str, CompiledProgram],
    kept: ResidentBytes,
    slice_of: Sequence[int],
    work: Workload,
) -> list[PhaseCost]:
    """The costs of scoring and of all updates.

    Rollouts outside the first update's minibatch are scored by the policy. With a KL term, all
    rollouts are scored by the reference policy.

    Args:
        parts: the planned run.
        programs: its compiled programs, by name.
        kept: the bytes that stay in memory between programs.
        slice_of: the slice of each device.
        work: the assumed questions.
    """
    cfg, tensor = parts.cfg, parts.mesh.shape["tensor"]
    row_tokens = config.trained_row_tokens(cfg)
    tokens = cfg.rollout.questions * cfg.rollout.group_size * (work.prompt + work.response)
    micro = tokens / (row_tokens * cfg.optim.micro_rows) / BUSY
    heads = _head_turns(parts, work)
    updates = cfg.rollout.questions / config.minibatch_questions(cfg)
    passes = 1 - 1 / updates + (cfg.loss.kl != "off")
    # the weights in bfloat16, read completely in each pass
    gathered = 2 * num_params(parts.spec) / tensor
    state = 2 * (kept.params + kept.optimizer)
    score, update = programs["score"].cost, programs["update"].cost
    return [
        _of_program(
            "score", score, (micro * passes, heads), slice_of, gathered * micro * passes, tensor
        ),
        _of_program(
            "update",
            update,
            (micro, heads),
            slice_of,
            3 * gathered * micro + state * updates,
            tensor,
        ),
    ]


def _head_turns(parts: PlannedRun, work: Workload) -> int:
    """Iterations of the output head's loop per micro-batch. It covers response tokens only."""
    cfg = parts.cfg
    row_tokens = config.trained_row_tokens(cfg)
    wanted = (
        row_tokens
        * cfg.optim.micro_rows
        / parts.engine.num_shards
        * BUSY
        * work.response
        / (work.prompt + work.response)
    )
    return math.ceil(wanted / cfg.model.logit_chunk)


def _of_program(
    name: str,
    cost: Cost | None,
    turns: tuple[float, ...],
    slice_of: Sequence[int],
    hbm: float,
    tensor: int = 1,
) -> PhaseCost:
    """The cost of a phase that runs one program.

    Args:
        name: the name of the phase.
        cost: the program's cost.
        turns: iterations of its loops of unknown length, outermost first.
        slice_of: the slice of each device.
        hbm: bytes read from and written to memory.
        tensor: devices that experts are split over.
    """
    assert cost is not None, "a program that does not fit has no estimate"
    total = cost.total(turns)
    kernels = (n * kernel_flops(kernel, tensor) for kernel, n in total.kernels.items())
    work = total.flops + sum(kernels)
    traffic: dict[str, Traffic] = {}
    sent = {False: 0.0, True: 0.0}  # inside a slice, between slices
    for collective, n in total.collectives.items():
        before = traffic.get(collective.kind, Traffic(0, 0))
        traffic[collective.kind] = Traffic(before.count + n, before.bytes + n * collective.bytes)
        sent[collective.crosses(slice_of)] += n * collective.wire_bytes
    return PhaseCost(name, work, hbm, sent[False], sent[True], traffic)


def kernel_flops(kernel: Kernel, tensor: int = 1) -> float:
    """The operations of a causal splash kernel on queries [..., T, C]; or of a grouped product of
    tokens and experts, if each device of `tensor` has an even share of the tokens' choices.

    0 for other kernels, whose work depends on their data.
    """
    if kernel.name.startswith(GROUPED):
        rows, other = (a.shape for a in kernel.operands[-2:])
        outputs = math.prod(other) // other[0] // (rows[1] if len(other) == 3 else 1)
        return 2 * math.prod(rows) * outputs / tensor
    products = next((n for start, n in SPLASH.items() if kernel.name.startswith(start)), 0)
    if not products:
        return 0.0
    shape = next(
        a.shape for a in kernel.operands if len(a.shape) >= 3 and a.dtype in ("bf16", "f32")
    )
    return products * math.prod(shape) * shape[-2]  # 2 T^2 C / 2 for each head


def _added(a: PhaseCost, b: PhaseCost) -> PhaseCost:
    traffic = dict(a.traffic)
    for kind, t in b.traffic.items():
        before = traffic.get(kind, Traffic(0, 0))
        traffic[kind] = Traffic(before.count + t.count, before.bytes + t.bytes)
    return PhaseCost("", a.flops + b.flops, a.hbm + b.hbm, a.ici + b.ici, a.dcn + b.dcn, traffic)


def _useful_flops(parts: PlannedRun, work: Workload, share: float) -> float:
    spec, r = parts.spec, parts.cfg.rollout
    sequences, whole = r.questions * r.group_size, work.prompt + work.response
    prompts = r.questions * flops.forward(spec, 0, work.prompt)
    sampled = (prompts + sequences * flops.forward(spec, work.prompt, whole)) * (1 + share)
    passes = 1 - config.minibatch_questions(parts.cfg) / r.questions + (parts.cfg.loss.kl != "off")
    return (
        sampled
        + passes * flops.scoring(spec, [whole] * sequences)
        + flops.update(spec, [whole] * sequences)
    )
