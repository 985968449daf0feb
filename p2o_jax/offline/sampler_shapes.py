"""The sampler's shapes where no training run has chosen them: fitted to the prompts at hand."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from p2o_jax.config import Config
from p2o_jax.models import sharding
from p2o_jax.models.device_memory import kv_bytes_per_token, state_bytes
from p2o_jax.startup.model import Model

MAX_SLOTS = 128  # per shard of the mesh's data x fsdp
# On a CPU the time of a decode step or of a prefill grows with its rows, whether used or not.
MAX_SLOTS_ON_CPU, PREFILL_ON_CPU = 32, 256
# per shard, for the cache of the prompts, and again for that of the completions
CACHE_BYTES = 2 * 2**30
MIN_BUCKET = 32
WAVES = 8  # completions written at a time, in multiples of the slots


def fit(
    cfg: Config, given: Collection[str], model: Model, lengths: Sequence[int], n: int
) -> Config:
    """The config with the sampler's shapes fitted to n completions of each prompt.

    Prompts are padded to one of three powers of two, the last of which holds the longest. There are
    as many slots, and as many prompts in the cache, as there is work for and as CACHE_BYTES hold.

    Args:
        given: the keys of the settings that the user has chosen; these stay.
        lengths: tokens of each prompt.
    """
    spec, shards = model.spec, sharding.num_shards(model.mesh)
    longest = max(1 << (max(lengths) - 1).bit_length(), MIN_BUCKET)
    token, state = kv_bytes_per_token(spec, model.dtype), state_bytes(spec)

    def held(positions: int) -> int:
        """Sequences with this many cached positions that CACHE_BYTES hold."""
        return CACHE_BYTES // (token * positions + state)

    on_cpu = model.mesh.devices.flat[0].platform == "cpu"
    most = MAX_SLOTS_ON_CPU if on_cpu else MAX_SLOTS
    slots = max(min(most, held(cfg.rollout.max_new_tokens), -(-len(lengths) * n // shards)), 1)
    rows = max(min(held(longest), -(-len(lengths) // shards)), 1)
    fitted: dict[str, Any] = {
        "prompt_buckets": tuple(sorted({max(longest >> shift, MIN_BUCKET) for shift in (4, 2, 0)})),
        "slots": slots * shards,
        "questions": WAVES * slots * shards,
        "group_size": 1,
        "prompt_cache_tokens": rows * longest * shards,
    }
    if on_cpu:
        fitted["prefill_tokens"] = PREFILL_ON_CPU
    ours = {name: value for name, value in fitted.items() if f"rollout.{name}" not in given}
    return dataclasses.replace(cfg, rollout=dataclasses.replace(cfg.rollout, **ours))
