"""A config's real programs, compiled for a topology: the learner's and the sampler's, with what each needs and does."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from p2o_jax import build, config
from p2o_jax.config import Config, ConfigError
from p2o_jax.models import hf_config, lora, sharding, transformer
from p2o_jax.models.spec import ModelSpec, Rope
from p2o_jax.plan import cost
from p2o_jax.plan.chips import GIB, Topology
from p2o_jax.records import Sampling
from p2o_jax.rl.learner import Learner
from p2o_jax.rollout import memory
from p2o_jax.rollout.engine import Engine

_QWEN3: dict[str, Any] = {"family": "qwen3", "vocab": 151936, "head_dim": 128, "rope": Rope(theta=1e6), "qk_norm": True}
SPECS = {
    "qwen3-0.6b": ModelSpec(width=1024, layers=28, heads=16, kv_heads=8, mlp=3072, tied=True, **_QWEN3),
    "qwen3-1.7b": ModelSpec(width=2048, layers=28, heads=16, kv_heads=8, mlp=6144, tied=True, **_QWEN3),
    "qwen3-4b": ModelSpec(width=2560, layers=36, heads=32, kv_heads=8, mlp=9728, tied=True, **_QWEN3),
    "qwen3-8b": ModelSpec(width=4096, layers=36, heads=32, kv_heads=8, mlp=12288, **_QWEN3),
    "qwen3-14b": ModelSpec(width=5120, layers=40, heads=40, kv_heads=8, mlp=17408, **_QWEN3),
    "qwen3-32b": ModelSpec(width=5120, layers=64, heads=64, kv_heads=8, mlp=25600, **_QWEN3),
}
KEY_BYTES = 8  # of a random key
UNLIMITED = 2**62
NUM_UPDATES = 100  # the length of the schedule makes no difference to a program


class _Chat(NamedTuple):
    """Nor do the tokens that end and pad a text."""

    stop_ids: tuple[int, ...] = (0,)
    pad_id: int = 0


class Memory(NamedTuple):
    """Bytes on a chip while a program runs: its arguments one by one, what it needs besides at its peak, and its code."""

    arguments: tuple[int, ...]
    caches: int  # of the arguments: keys and values
    temporaries: int
    outputs: int
    code: int

    @property
    def peak(self) -> int:
        return sum(self.arguments) + self.temporaries


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program; one that is too large for a chip has no cost, and all that is known of its memory is the peak."""

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
        raise ConfigError(f"--model={name}: expected one of {', '.join(SPECS)}, or a model directory ({e.problems[0]})") from e


Known = MutableMapping[tuple[Any, ...], Program]  # by all that a program depends on where layouts are tried


class Parts(NamedTuple):
    """Learner and sampler of a config for a mesh whose devices need not be there."""

    cfg: Config
    spec: ModelSpec
    mesh: Mesh
    learner: Learner
    engine: Engine


def make(cfg: Config, spec: ModelSpec, topology: Topology) -> Parts:
    """The parts as `build` makes them, without a model directory.

    Raises:
        ConfigError: with a line for every weight that the mesh splits unevenly.
    """
    devices = topology.devices()
    mesh = sharding.make_mesh(config.mesh_shape(cfg.mesh, len(devices)), devices)
    padding = -spec.vocab % mesh.shape["tensor"]
    spec = dataclasses.replace(spec, lora=lora.from_config(cfg.lora), padded_vocab=spec.vocab + padding if padding else 0)
    found = [line for rules in (sharding.LEARNER, sharding.ROLLOUT) for line in sharding.problems(spec, mesh, rules)]
    if found:
        raise ConfigError(*dict.fromkeys(found))
    dtype = jnp.float32 if cfg.model.compute_dtype == "float32" else jnp.bfloat16
    model = build.Model(Path(), spec, cast(Any, _Chat()), mesh, dtype)
    learner = Learner(spec, mesh, cfg, NUM_UPDATES, dtype, model.chat.pad_id)
    enough = UNLIMITED if cfg.rollout.slots else int(topology.chip.hbm_gib * GIB)  # what does not fit is compiled, too
    return Parts(cfg, spec, mesh, learner, build.make_engine(cfg, model, memory.per_device(learner.abstract_state()), enough))


def lowered(parts: Parts, prompt: int) -> list[tuple[str, jax.stages.Lowered]]:
    """The programs that matter: laying out, the sampler's for prompts of this many tokens in whole groups, and for the longest ones
    that training has, each rollout by itself; then the learner's."""
    cfg, engine, spec = parts.cfg, parts.engine, parts.spec
    full = jax.eval_shape(lambda: transformer.init(spec, jax.random.key(0), cfg.model.param_dtype))
    shardings = sharding.param_shardings(spec, parts.mesh, sharding.LEARNER)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), full, shardings)
    found = [("lay_out", jax.jit(engine.lay_out).lower(params))]
    r = cfg.rollout
    needed = engine.needed(Sampling(r.temperature, r.max_new_tokens, r.top_k, r.top_p, r.min_p), max(r.prompt_buckets))
    usual, longest = bucket_of(cfg, prompt), bucket_of(cfg, config.max_templated_prompt_tokens(cfg))
    for bucket, (rows, group) in dict.fromkeys([(usual, engine.shapes(usual)[-1]), (longest, engine.shapes(longest)[0])]):
        for p in needed:
            if (p.bucket, p.rows) == (bucket, rows) and p.kind in ("prefill", "decode") and p.size in (0, engine.sizes[0]):
                how = f" in groups of {group}" if group > 1 else ""
                found.append((f"{p.kind} {bucket}{how}", engine.lower(p)))
    return [*found, *parts.learner.programs()]


def bucket_of(cfg: Config, prompt: int) -> int:
    """The prompt bucket that takes so many tokens, or the largest."""
    return min((b for b in cfg.rollout.prompt_buckets if b >= prompt), default=max(cfg.rollout.prompt_buckets))


def compile_all(parts: Parts, prompt: int, tell: Callable[[str], None], known: Known) -> dict[str, Program]:
    """The programs of `lowered`, by name, compiled one after the other unless they are known already."""
    found = {}
    for name, made in lowered(parts, prompt):
        learns = (parts.cfg.model.remat, parts.cfg.optim.micro_rows) if name.startswith(("update", "score")) else ()
        key = (name, *parts.mesh.shape.values(), *learns)
        found[name] = known[key] = known.get(key) or compile_one(name, made, tell)
    return found


def compile_one(name: str, made: jax.stages.Lowered, tell: Callable[[str], None]) -> Program:
    """The program compiled; `tell` says a line when it is done."""
    start = time.monotonic()
    shapes = tuple(x.shape for x in jax.tree.leaves(made.args_info))
    try:
        compiled = made.compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        program = Program(name, Memory((), 0, _needed(str(e)), 0, 0), None, shapes, time.monotonic() - start)
    else:
        program = Program(name, _memory(made, compiled), cost.cost(compiled.as_text() or ""), shapes, time.monotonic() - start)
    tell(f"{name}: {program.memory.peak / GIB:.2f} GiB a chip{'' if program.cost else ', too large'}; compiled in {program.seconds:.0f} s")
    return program


def _memory(made: jax.stages.Lowered, compiled: jax.stages.Compiled) -> Memory:
    """The compiler's own account. Of the arguments it knows the sum only; they are told apart by their shardings."""
    found = compiled.memory_analysis()
    assert found is not None
    parts: list[list[tuple[int, int]]] = []  # rank and bytes of each array
    for arg, splits in zip(made.args_info[0], compiled.input_shardings[0], strict=True):
        parts.append([])
        jax.tree.map(lambda x, split: parts[-1].append((len(x.shape), shard_bytes(x, split))), arg, splits)
    sizes = [sum(size for _, size in part) for part in parts]
    caches = sum(size for part in parts[1:] for rank, size in part if rank >= 3)
    temporaries = max(found.peak_memory_in_bytes - sum(sizes), 0)
    return Memory(tuple(sizes), caches, temporaries, found.output_size_in_bytes, found.generated_code_size_in_bytes)


def shard_bytes(x: Any, split: Any) -> int:
    """Bytes of an array (or of its description) on one device; 0 for an argument that the program leaves out, whose sharding is None."""
    item = KEY_BYTES if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
    return math.prod(split.shard_shape(x.shape)) * item if split is not None else 0


def _needed(message: str) -> int:
    """The bytes that a program would have needed: the largest amount in the compiler's complaint."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return max((int(float(n) * units[u]) for n, u in re.findall(r"([\d.]+)([KMGT])\b", message)), default=0)
