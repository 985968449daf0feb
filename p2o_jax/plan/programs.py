"""Compiles a config's real programs, the learner's and the sampler's, for a topology."""

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
from jax.sharding import Mesh

from p2o_jax import config
from p2o_jax.config import Config, ConfigError
from p2o_jax.models import hf_config, sharding
from p2o_jax.models.device_memory import bytes_per_device
from p2o_jax.models.spec import ModelSpec
from p2o_jax.plan import cost
from p2o_jax.plan.chips import GIB, Topology
from p2o_jax.plan.models import SPECS
from p2o_jax.rl.learner import Learner
from p2o_jax.rollout import sampling_params
from p2o_jax.rollout.engine import Engine
from p2o_jax.rollout.programs import Program as EngineProgram
from p2o_jax.startup import components, memory_report
from p2o_jax.startup.model import Model, compute_dtype, place

UNLIMITED = 2**62
OF_DEPTH = ", layers: "
NUM_UPDATES = 100  # programs do not depend on the length of the schedule


class _Chat(NamedTuple):
    """Stands in for `Chat`: programs do not depend on which ids stop or pad."""

    stop_ids: tuple[int, ...] = (0,)
    pad_id: int = 0


class Memory(NamedTuple):
    """Bytes per chip while a program runs."""

    arguments: tuple[int, ...]
    caches: int  # keys and values among the arguments
    temporaries: int  # at the peak
    outputs: int
    code: int

    @property
    def peak(self) -> int:
        """The arguments and temporaries."""
        return sum(self.arguments) + self.temporaries


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """A compiled program. If it is too large for a chip, only its peak memory is known."""

    name: str
    memory: Memory
    cost: cost.Cost | None
    shapes: tuple[tuple[int, ...], ...]  # of all arguments
    seconds: float  # of compilation


def model_spec(name: str) -> ModelSpec:
    """The spec of a known model or of a model directory.

    Raises:
        ConfigError: `name` is neither.
    """
    if name in SPECS:
        return SPECS[name]
    try:
        return hf_config.read_spec(hf_config.locate(name))
    except ConfigError as e:
        raise ConfigError(
            f"--model={name}: expected one of {', '.join(SPECS)}, or a model directory"
            f" ({e.problems[0]})"
        ) from e


# Compiled programs by everything that they depend on in a sweep.
ProgramCache = MutableMapping[tuple[Any, ...], CompiledProgram]


class PlannedRun(NamedTuple):
    """The learner and the sampler of a config for a mesh whose devices may be missing."""

    cfg: Config
    spec: ModelSpec
    mesh: Mesh
    learner: Learner
    engine: Engine


def make(cfg: Config, spec: ModelSpec, topology: Topology) -> PlannedRun:
    """The parts as `build` makes them, without a model directory.

    Raises:
        ConfigError: with a line for every weight that the mesh splits unevenly.
    """
    devices = topology.devices()
    mesh = sharding.make_mesh(config.mesh_shape(cfg.mesh, len(devices)), devices)
    spec = place(cfg, spec, mesh)
    dtype = compute_dtype(cfg)
    model = _model(spec, mesh, dtype)
    learner = Learner(spec, mesh, cfg, NUM_UPDATES, dtype, model.chat.pad_id)
    # also compile what does not fit
    enough = UNLIMITED if cfg.rollout.slots else int(topology.chip.hbm_gib * GIB)
    return PlannedRun(
        cfg,
        spec,
        mesh,
        learner,
        components.make_engine(
            cfg, model, memory_report.held_bytes(cfg, spec, mesh, learner), enough
        ),
    )


def _model(spec: ModelSpec, mesh: Mesh, dtype: Any) -> Model:
    return Model(Path(), spec, mesh, dtype, cast(Any, _Chat()))


class LoweredProgram(NamedTuple):
    """A program to compile, and the bytes per chip of the keys and values among its arguments."""

    name: str
    lowered: jax.stages.Lowered
    caches: int = 0


def lowered(parts: PlannedRun, prompt: int, depths: Sequence[int] = ()) -> Iterator[LoweredProgram]:
    """The programs to plan: resharding, the sampler's (see `sampler`) and the learner's.

    With `depths`, the sampler's programs are those of models with these numbers of layers, and
    their names end with the number.
    """
    cfg, spec = parts.cfg, parts.spec
    params = sharding.abstract_params(spec, parts.mesh, sharding.LEARNER, cfg.model.param_dtype)
    yield LoweredProgram("to_rollout_layout", jax.jit(parts.engine.to_rollout_layout).lower(params))
    if not depths:
        yield from sampler(parts.engine, cfg, prompt)
    for depth in depths:
        model = _model(dataclasses.replace(spec, layers=depth), parts.mesh, parts.engine.dtype)
        shallow = components.make_engine(
            dataclasses.replace(cfg, rollout=parts.engine.cfg), model, 0, UNLIMITED
        )
        yield from (
            program._replace(name=f"{program.name}{OF_DEPTH}{depth}")
            for program in sampler(shallow, cfg, prompt)
        )
    yield from (LoweredProgram(*program) for program in parts.learner.programs())


def sampler(engine: Engine, cfg: Config, prompt: int) -> Iterator[LoweredProgram]:
    """The sampler's programs for two kinds of prompts.

    These are prompts of `prompt` tokens in whole groups, and the longest prompts of training for
    single rollouts.
    """
    needed = engine.needed(sampling_params.training(cfg), max(cfg.rollout.prompt_buckets))
    usual, longest = bucket_of(cfg, prompt), bucket_of(cfg, config.max_templated_prompt_tokens(cfg))
    for bucket, (rows, group) in dict.fromkeys(
        [(usual, engine.shapes(usual)[-1]), (longest, engine.shapes(longest)[0])]
    ):
        for p in needed:
            if (
                (p.bucket, p.rows) == (bucket, rows)
                and p.kind in ("prefill", "decode")
                and p.size in (0, engine.sizes[0])
            ):
                suffix = f" in groups of {group}" if group > 1 else ""
                name = f"{p.kind} {bucket}{suffix}"
                yield LoweredProgram(name, engine.lower(p), _caches(engine, p))


def _caches(engine: Engine, p: EngineProgram) -> int:
    """Bytes per chip of the prompt cache and, in decoding, of the slots."""
    prompt_cache = bytes_per_device(engine.abstract_prompt_cache(p))
    if p.kind == "prefill":
        return prompt_cache
    slots = engine.abstract_state(p._replace(bucket=engine.copied(p.bucket, p.group))).slots
    return prompt_cache + bytes_per_device((slots.spans, slots.prompts))


def bucket_of(cfg: Config, prompt: int) -> int:
    """The smallest prompt bucket for `prompt` tokens, or the largest bucket."""
    return min(
        (b for b in cfg.rollout.prompt_buckets if b >= prompt),
        default=max(cfg.rollout.prompt_buckets),
    )


class CompileOptions(NamedTuple):
    """How to compile programs.

    With `quick`, the sampler's programs, whose layers are unrolled, are compiled for two small
    depths only. The figures of the whole model are extrapolated, because the cost and memory of a
    program are linear in the number of layers.
    """

    jobs: int = 1  # programs compiled at the same time
    quick: bool = False


def compile_all(
    parts: PlannedRun,
    prompt: int,
    log: Callable[[str], None],
    known: ProgramCache,
    options: CompileOptions,
) -> dict[str, CompiledProgram]:
    """Compiles the programs of `lowered`. Returns them by name.

    Args:
        parts: the planned run.
        prompt: mean tokens of a prompt.
        log: called with a line after each compilation.
        known: programs that are already compiled; receives the new ones.
        options: how to compile.
    """
    depths = small_depths(parts.spec) if options.quick else ()
    pending: dict[str, Future[CompiledProgram] | CompiledProgram] = {}
    keys: dict[str, tuple[Any, ...]] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for program in lowered(parts, prompt, depths):
            name = program.name
            keys[name] = (name, *parts.mesh.shape.values(), *_depends(parts, name))
            pending[name] = known.get(keys[name]) or pool.submit(compile_one, program, log)
    programs = {name: p.result() if isinstance(p, Future) else p for name, p in pending.items()}
    known.update((keys[name], program) for name, program in programs.items())
    return _deepened(programs, parts.spec.layers, depths)


def small_depths(spec: ModelSpec) -> tuple[int, ...]:
    """Returns the layers of two small models from which a quick plan extrapolates: one and two
    repeats of the pattern, or of two layers. Empty if the model is not deeper.
    """
    period = max(len(spec.pattern), 2)
    return (period, 2 * period) if spec.layers > 2 * period else ()


def _deepened(
    programs: Mapping[str, CompiledProgram], layers: int, depths: tuple[int, ...]
) -> dict[str, CompiledProgram]:
    """Replaces the programs of both small depths by one of `layers` layers, in the same order."""
    if not depths:
        return dict(programs)
    less, more = depths
    deepened = {}
    for name, program in programs.items():
        plain, _, depth = name.partition(OF_DEPTH)
        if depth == str(less):
            deepened[plain] = deeper(
                program, programs[f"{plain}{OF_DEPTH}{more}"], (layers - less) / (more - less)
            )
        elif not depth:
            deepened[name] = program
    return deepened


def deeper(a: CompiledProgram, b: CompiledProgram, times: float) -> CompiledProgram:
    """Extrapolates a program's memory and cost: `a + times * (b - a)`.

    The result has no cost if `a` or `b` is too large for a chip.
    """

    def along(x: float, y: float) -> int:
        return round(x + times * (y - x))

    arguments = tuple(map(along, a.memory.arguments, b.memory.arguments))
    rest = (along(x, y) for x, y in zip(a.memory[1:], b.memory[1:], strict=True))
    total = cost.extrapolated(a.cost, b.cost, times) if a.cost and b.cost else None
    return CompiledProgram(
        a.name.partition(OF_DEPTH)[0],
        Memory(arguments, *rest),
        total,
        b.shapes,
        a.seconds + b.seconds,
    )


def _depends(parts: PlannedRun, name: str) -> tuple[Any, ...]:
    """The settings of a sweep, besides the mesh, that a program depends on."""
    if name.startswith(("update", "score")):
        return parts.cfg.model.remat, parts.cfg.optim.micro_rows
    return (
        ()
        if name == "to_rollout_layout"
        else (parts.engine.cfg.cache_dtype, parts.engine.cfg.slots)
    )


def compile_one(program: LoweredProgram, log: Callable[[str], None]) -> CompiledProgram:
    """Compiles a program, and logs a line when it is done."""
    start, (name, stage, caches) = time.monotonic(), program
    shapes = tuple(x.shape for x in jax.tree.leaves(stage.args_info))
    try:
        compiled = stage.compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        memory, total = Memory((), caches, _needed(str(e)), 0, 0), None
    else:
        memory, total = _memory(stage, compiled, caches), cost.cost(compiled.as_text() or "")
    seconds = time.monotonic() - start
    log(
        f"{name}: {memory.peak / GIB:.2f} GiB a chip{'' if total else ', too large'}; compiled in"
        f" {seconds:.0f} s"
    )
    return CompiledProgram(name, memory, total, shapes, seconds)


def _memory(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled, caches: int) -> Memory:
    """The memory reported by the compiler.

    The compiler only reports the sum of the arguments. Their sizes follow from their shardings.
    """
    analysis = compiled.memory_analysis()
    assert analysis is not None
    pairs = zip(lowered.args_info[0], compiled.input_shardings[0], strict=True)
    # None: an argument that the program leaves out
    sizes = tuple(0 if splits is None else bytes_per_device(arg, splits) for arg, splits in pairs)
    temporaries = max(analysis.peak_memory_in_bytes - sum(sizes), 0)
    return Memory(
        sizes,
        caches,
        temporaries,
        analysis.output_size_in_bytes,
        analysis.generated_code_size_in_bytes,
    )


def _needed(message: str) -> int:
    """The bytes that a program needs: the largest amount in the compiler's error message."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return max(
        (int(float(n) * units[u]) for n, u in re.findall(r"([\d.]+)([KMGT])\b", message)), default=0
    )
