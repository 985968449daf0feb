"""A config's real programs, compiled for a topology: the learner's and the sampler's, with what
each needs and does.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from p2o_jax import config
from p2o_jax.config import Config, ConfigError
from p2o_jax.models import hf_config, lora, sharding
from p2o_jax.models.spec import ModelSpec, Rope
from p2o_jax.plan import cost
from p2o_jax.plan.chips import GIB, Topology
from p2o_jax.rl.learner import Learner
from p2o_jax.rollout import memory, sampling_params
from p2o_jax.rollout.engine import Engine
from p2o_jax.rollout.engine import Program as EngineProgram
from p2o_jax.startup import components
from p2o_jax.startup.model import Model

_QWEN3: dict[str, Any] = {
    "family": "qwen3",
    "vocab": 151936,
    "head_dim": 128,
    "rope": Rope(theta=1e6),
    "qk_norm": True,
}
SPECS = {
    "qwen3-0.6b": ModelSpec(
        width=1024, layers=28, heads=16, kv_heads=8, mlp=3072, tied=True, **_QWEN3
    ),
    "qwen3-1.7b": ModelSpec(
        width=2048, layers=28, heads=16, kv_heads=8, mlp=6144, tied=True, **_QWEN3
    ),
    "qwen3-4b": ModelSpec(
        width=2560, layers=36, heads=32, kv_heads=8, mlp=9728, tied=True, **_QWEN3
    ),
    "qwen3-8b": ModelSpec(width=4096, layers=36, heads=32, kv_heads=8, mlp=12288, **_QWEN3),
    "qwen3-14b": ModelSpec(width=5120, layers=40, heads=40, kv_heads=8, mlp=17408, **_QWEN3),
    "qwen3-32b": ModelSpec(width=5120, layers=64, heads=64, kv_heads=8, mlp=25600, **_QWEN3),
}
KEY_BYTES = 8  # of a random key
UNLIMITED = 2**62
DEPTHS = (2, 4)  # layers of the models that stand for deep ones in quick plans
OF_DEPTH = ", layers: "
NUM_UPDATES = 100  # the length of the schedule makes no difference to a program


class _Chat(NamedTuple):
    """Nor do the tokens that end and pad a text."""

    stop_ids: tuple[int, ...] = (0,)
    pad_id: int = 0


class Memory(NamedTuple):
    """Bytes on a chip while a program runs: its arguments one by one, what it needs besides at
    its peak, and its code.
    """

    arguments: tuple[int, ...]
    caches: int  # of the arguments: keys and values
    temporaries: int
    outputs: int
    code: int

    @property
    def peak(self) -> int:
        return sum(self.arguments) + self.temporaries


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """A compiled program; one that is too large for a chip has no cost, and all that is known of
    its memory is the peak.
    """

    name: str
    memory: Memory
    cost: cost.Cost | None
    shapes: tuple[tuple[int, ...], ...]  # of all its arguments
    seconds: float  # that compiling took


def model_spec(name: str) -> ModelSpec:
    """The shapes of a model by name, or of a model directory.

    Raises:
        ConfigError: neither.
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


# by all that a program depends on where layouts are tried
Known = MutableMapping[tuple[Any, ...], CompiledProgram]


class PlannedRun(NamedTuple):
    """Learner and sampler of a config for a mesh whose devices need not be there."""

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
    padding = -spec.vocab % mesh.shape["tensor"]
    spec = dataclasses.replace(
        spec, lora=lora.from_config(cfg.lora), padded_vocab=spec.vocab + padding if padding else 0
    )
    found = [
        line
        for rules in (sharding.LEARNER, sharding.ROLLOUT)
        for line in sharding.problems(spec, mesh, rules)
    ]
    if found:
        raise ConfigError(*dict.fromkeys(found))
    dtype = jnp.float32 if cfg.model.compute_dtype == "float32" else jnp.bfloat16
    model = _model(spec, mesh, dtype)
    learner = Learner(spec, mesh, cfg, NUM_UPDATES, dtype, model.chat.pad_id)
    # what does not fit is compiled, too
    enough = UNLIMITED if cfg.rollout.slots else int(topology.chip.hbm_gib * GIB)
    return PlannedRun(
        cfg,
        spec,
        mesh,
        learner,
        components.make_engine(cfg, model, components.held_bytes(cfg, spec, mesh, learner), enough),
    )


def _model(spec: ModelSpec, mesh: Mesh, dtype: Any) -> Model:
    return Model(Path(), spec, cast(Any, _Chat()), mesh, dtype)


class Asked(NamedTuple):
    """A program to be compiled, and the bytes on a chip of the keys and values that it is given."""

    name: str
    made: jax.stages.Lowered
    caches: int = 0


def lowered(parts: PlannedRun, prompt: int, depths: Sequence[int] = ()) -> Iterator[Asked]:
    """The programs that matter: laying out, the sampler's (see `sampler`) and the learner's.
    With `depths` the sampler's are those of models of so many layers each, their names end with
    the number."""
    cfg, spec = parts.cfg, parts.spec
    params = sharding.abstract_params(spec, parts.mesh, sharding.LEARNER, cfg.model.param_dtype)
    yield Asked("to_rollout_layout", jax.jit(parts.engine.to_rollout_layout).lower(params))
    if not depths:
        yield from sampler(parts.engine, cfg, prompt)
    for depth in depths:
        model = _model(dataclasses.replace(spec, layers=depth), parts.mesh, parts.engine.dtype)
        shallow = components.make_engine(
            dataclasses.replace(cfg, rollout=parts.engine.cfg), model, 0, UNLIMITED
        )
        yield from (
            asked._replace(name=f"{asked.name}{OF_DEPTH}{depth}")
            for asked in sampler(shallow, cfg, prompt)
        )
    yield from (Asked(*program) for program in parts.learner.programs())


def sampler(engine: Engine, cfg: Config, prompt: int) -> Iterator[Asked]:
    """The sampler's programs for prompts of this many tokens in whole groups, and for the
    longest ones that training has, each rollout by itself."""
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
                how = f" in groups of {group}" if group > 1 else ""
                yield Asked(f"{p.kind} {bucket}{how}", engine.lower(p), _caches(engine, p))


def _caches(engine: Engine, p: EngineProgram) -> int:
    """Of the prompt cache, and in decoding of the slots."""
    prompt_cache = memory.per_device(engine.abstract_prompt_cache(p))
    if p.kind == "prefill":
        return prompt_cache
    rows = engine.abstract_run(p._replace(bucket=engine.copied(p.bucket, p.group))).rows
    return prompt_cache + memory.per_device((rows.slots, rows.prompts))


def bucket_of(cfg: Config, prompt: int) -> int:
    """The prompt bucket that takes so many tokens, or the largest."""
    return min(
        (b for b in cfg.rollout.prompt_buckets if b >= prompt),
        default=max(cfg.rollout.prompt_buckets),
    )


class How(NamedTuple):
    """How programs are compiled: so many at a time; `quick`: the sampler's, whose layers are
    unrolled, for two small depths only. Those of the whole model follow, as what a program does
    and holds is linear in the number of layers."""

    jobs: int = 1
    quick: bool = False


def compile_all(
    parts: PlannedRun, prompt: int, log: Callable[[str], None], known: Known, how: How
) -> dict[str, CompiledProgram]:
    """The programs of `lowered`, by name, compiled unless they are known already."""
    quick = how.quick and parts.spec.layers > max(DEPTHS)
    found: dict[str, Future[CompiledProgram] | CompiledProgram] = {}
    keys: dict[str, tuple[Any, ...]] = {}
    with ThreadPoolExecutor(how.jobs) as pool:
        for asked in lowered(parts, prompt, DEPTHS if quick else ()):
            name = asked.name
            keys[name] = (name, *parts.mesh.shape.values(), *_depends(parts, name))
            found[name] = known.get(keys[name]) or pool.submit(compile_one, asked, log)
    programs = {name: p.result() if isinstance(p, Future) else p for name, p in found.items()}
    known.update((keys[name], program) for name, program in programs.items())
    return _deepened(programs, parts.spec.layers)


def _deepened(programs: Mapping[str, CompiledProgram], layers: int) -> dict[str, CompiledProgram]:
    """The programs, those of both small depths replaced by that of so many layers; the order stays."""
    less, more = DEPTHS
    found = {}
    for name, program in programs.items():
        plain, _, depth = name.partition(OF_DEPTH)
        if depth == str(less):
            found[plain] = deeper(
                program, programs[f"{plain}{OF_DEPTH}{more}"], (layers - less) / (more - less)
            )
        elif not depth:
            found[name] = program
    return found


def deeper(a: CompiledProgram, b: CompiledProgram, times: float) -> CompiledProgram:
    """What is linear in the number of layers, carried on from a to b and `times` as far; too
    large where one of both is.
    """

    def along(x: float, y: float) -> int:
        return round(x + times * (y - x))

    arguments = tuple(map(along, a.memory.arguments, b.memory.arguments))
    rest = (along(x, y) for x, y in zip(a.memory[1:], b.memory[1:], strict=True))
    found = cost.carried_on(a.cost, b.cost, times) if a.cost and b.cost else None
    return CompiledProgram(
        a.name.partition(OF_DEPTH)[0],
        Memory(arguments, *rest),
        found,
        b.shapes,
        a.seconds + b.seconds,
    )


def _depends(parts: PlannedRun, name: str) -> tuple[Any, ...]:
    """What a program depends on of the settings that layouts differ in, besides the mesh."""
    if name.startswith(("update", "score")):
        return parts.cfg.model.remat, parts.cfg.optim.micro_rows
    return (
        ()
        if name == "to_rollout_layout"
        else (parts.engine.cfg.cache_dtype, parts.engine.cfg.slots)
    )


def compile_one(asked: Asked, log: Callable[[str], None]) -> CompiledProgram:
    """The program compiled; `log` says a line when it is done."""
    start, (name, made, caches) = time.monotonic(), asked
    shapes = tuple(x.shape for x in jax.tree.leaves(made.args_info))
    try:
        compiled = made.compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        account, found = Memory((), caches, _needed(str(e)), 0, 0), None
    else:
        account, found = _memory(made, compiled, caches), cost.cost(compiled.as_text() or "")
    program = CompiledProgram(name, account, found, shapes, time.monotonic() - start)
    log(
        f"{name}: {account.peak / GIB:.2f} GiB a chip{'' if found else ', too large'}; compiled in"
        f" {program.seconds:.0f} s"
    )
    return program


def _memory(made: jax.stages.Lowered, compiled: jax.stages.Compiled, caches: int) -> Memory:
    """The compiler's own account. Of the arguments it knows the sum only; they are told apart by
    their shardings.
    """
    found = compiled.memory_analysis()
    assert found is not None
    pairs = zip(made.args_info[0], compiled.input_shardings[0], strict=True)
    sizes = tuple(
        sum(jax.tree.leaves(jax.tree.map(shard_bytes, arg, splits))) for arg, splits in pairs
    )
    temporaries = max(found.peak_memory_in_bytes - sum(sizes), 0)
    return Memory(
        sizes, caches, temporaries, found.output_size_in_bytes, found.generated_code_size_in_bytes
    )


def shard_bytes(x: Any, split: Any) -> int:
    """Bytes of an array (or of its description) on one device; 0 for an argument that the
    program leaves out, whose sharding is None.
    """
    item = KEY_BYTES if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
    return math.prod(split.shard_shape(x.shape)) * item if split is not None else 0


def _needed(message: str) -> int:
    """The bytes that a program would have needed: the largest amount in the compiler's complaint."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return max(
        (int(float(n) * units[u]) for n, u in re.findall(r"([\d.]+)([KMGT])\b", message)), default=0
    )
