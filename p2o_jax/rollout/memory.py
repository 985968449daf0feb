"""What sampling holds in a device's memory, computed before anything is compiled; and how many
slots fit.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from p2o_jax.config import ConfigError
from p2o_jax.models import experts, sharding
from p2o_jax.models.device_memory import bytes_per_device
from p2o_jax.rollout import prefill
from p2o_jax.rollout.engine import Engine
from p2o_jax.rollout.programs import CHUNKS_PER_WAVE, Program
from p2o_jax.runtime import distributed

GIB = 2**30
USABLE = 0.92  # of a device's memory: the rest is for what the compiler and the allocator need
# per shard, where they are chosen by memory: more make a step longer, not the tokens per second
# more
MAX_SLOTS = 256


@dataclass(frozen=True)
class Plan:
    """Bytes per device."""

    weights: int
    prompt_cache: int
    slots: int
    outputs: int
    temporaries: int
    others: int  # held by others all the while: master weights, optimizer

    @property
    def total(self) -> int:
        """All bytes of the plan."""
        return (
            self.weights
            + self.prompt_cache
            + self.slots
            + self.outputs
            + self.temporaries
            + self.others
        )

    def arithmetic(self, engine: Engine) -> str:
        """The arithmetic, in a line."""
        cfg, shards = engine.cfg, engine.num_shards
        kind = np.dtype(engine.cache_dtype).name
        parts = [
            f"weights {_gib(self.weights)}",
            (
                f"prompts {_gib(self.prompt_cache)}"
                f" (config.rollout.prompt_cache_tokens={cfg.prompt_cache_tokens} / {shards},"
                f" {kind})"
            ),
            f"{engine.sizes[0]} slots x {engine.capacities[-1]} tokens {_gib(self.slots)}",
            f"outputs {_gib(self.outputs)}",
            f"temporaries {_gib(self.temporaries)}",
            f"held by the learner {_gib(self.others)}",
        ]
        return " + ".join(parts) + f" = {_gib(self.total)}"


def plan(engine: Engine, others: int = 0) -> Plan:
    """The memory of an engine's largest programs, with `others` bytes per device held besides."""
    spec, mesh, capacity = engine.spec, engine.mesh, engine.capacities[-1]
    shapes = [
        (bucket, rows) for bucket in engine.cfg.prompt_buckets for rows, _ in engine.shapes(bucket)
    ]
    copied = max(
        engine.copied(bucket, group)
        for bucket in engine.cfg.prompt_buckets
        for _, group in engine.shapes(bucket)
    )
    state = engine.abstract_state(Program("slots", copied, capacity=capacity, size=engine.sizes[0]))
    logits = engine.sizes[0] * spec.vocab_rows * 4 // mesh.shape["tensor"]
    return Plan(
        weights=bytes_per_device(engine.abstract_weights),
        prompt_cache=max(
            bytes_per_device(engine.abstract_prompt_cache(Program("prompt_cache", bucket, rows)))
            for bucket, rows in shapes
        ),
        slots=bytes_per_device(state.slots),
        outputs=2 * bytes_per_device(state._replace(slots=()))
        + _gathered_choices(engine, capacity),
        temporaries=max(
            4 * logits, *(_prefill_bytes(engine, bucket, rows) for bucket, rows in shapes)
        ),
        others=others,
    )


def fitting(
    make: Callable[[int], Engine], slots: int, others: int = 0, memory: int | None = None
) -> Engine:
    """The engine with this many slots, or, if that is 0, with as many per shard, up to MAX_SLOTS,
    as there is memory for.

    Tried are one, three, five and seven times the powers of two: at least four fifths of the most
    that would fit are taken.
    `memory`: bytes of a device, where it is not there to be asked.

    Raises:
        ConfigError: it does not fit, with the arithmetic; or not even with one slot per shard.
    """
    engine = make(slots or 1)
    limit = int(USABLE * (memory or device_bytes(engine.mesh)))
    if not slots:
        most = min(MAX_SLOTS, engine.max_rollouts)
        tried = {
            most,
            *(n << k for n in (1, 3, 5, 7) for k in range(most.bit_length()) if n << k <= most),
        }
        counts = (n * engine.num_shards for n in sorted(tried, reverse=True))
        fits = (
            candidate for candidate in map(make, counts) if plan(candidate, others).total <= limit
        )
        engine = next(fits, make(engine.num_shards))
    needed = plan(engine, others)
    if needed.total > limit:
        missing = needed.total - limit
        raise ConfigError(
            "sampling does not fit into a device's memory:"
            f" {needed.arithmetic(engine)}, of {_gib(limit)}"
            f" usable, {_gib(missing)} too much; {_more_tensor(engine, needed, missing)}lower"
            " config.rollout.prompt_cache_tokens, slots or max_new_tokens, set"
            " config.rollout.cache_dtype=int8, or use more devices (config.mesh)"
        )
    return engine


def _more_tensor(engine: Engine, needed: Plan, missing: int) -> str:
    """The least config.mesh.tensor that splits the weights as far as is needed, as a remedy;
    empty if none does.
    """
    spec, now, shards = engine.spec, engine.mesh.shape["tensor"], engine.num_shards
    for more in (
        n for n in range(2, shards + 1) if shards % n == 0 and sharding.divides(spec, n * now)
    ):
        if needed.weights * (1 - 1 / more) >= missing:
            return f"set config.mesh.tensor={more * now} (now {now}), which splits the weights, "
    return ""


def device_bytes(mesh: Mesh) -> int:
    """Memory of one of the mesh's devices, as process 0 sees its own; of a CPU, its part of the
    machine's.
    """

    def own() -> int:
        device = mesh.local_devices[0]
        known = device.memory_stats() if device.platform != "cpu" else None
        return (
            int(known["bytes_limit"])
            if known
            else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)
        )

    return distributed.broadcast_from_main(own)


def _gathered_choices(engine: Engine, capacity: int) -> int:
    """Recorded choices of experts in a chunk's rollouts, which every device of several hosts gets
    from all shards; 0 if none are recorded.
    """
    choice = experts.choices_of_token(engine.spec, engine.record_experts)
    finished = -(-engine.max_rollouts // CHUNKS_PER_WAVE) + engine.sizes[0]
    rollouts = min(finished, engine.max_rollouts) * engine.num_shards
    return rollouts * capacity * choice.size * choice.dtype.itemsize


def _prefill_bytes(engine: Engine, bucket: int, rows: int) -> int:
    """Scores of a chunk against a chunk, and the widest of its activations."""
    chunk = prefill.chunk_of(bucket)
    tokens = engine.pieces(bucket, rows) * chunk
    scores = 3 * tokens * engine.spec.heads * chunk * 4
    return (
        scores + tokens * (3 * engine.spec.mlp_channels + 4 * engine.spec.width) * 4
    ) // engine.mesh.shape["tensor"]


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
