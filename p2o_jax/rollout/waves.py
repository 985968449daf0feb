"""Which requests run together: split by prompt length, then packed into waves of fixed capacity, shard by shard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from p2o_jax.records import Request


@dataclass
class ShardPlan:
    """What one shard samples in a wave: distinct prompts, and (request index, row of its prompt) in queue order."""

    prompts: list[tuple[int, ...]] = field(default_factory=list)
    queue: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Wave:
    """One run of the sampling programs of a prompt-length bucket."""

    bucket: int
    shards: list[ShardPlan]


def plan(requests: Sequence[Request], max_prompts: Mapping[int, int], num_shards: int, max_rollouts: int) -> list[Wave]:
    """The waves that run every request once.

    Each shard of a wave has at most `max_prompts[bucket]` distinct prompts and `max_rollouts` rollouts.

    Rollouts of the same prompt stand next to each other. Shards of a wave get equal numbers of rollouts as far as prompts allow.

    Raises:
        ValueError: a prompt is longer than the largest bucket.
    """
    by_bucket: dict[int, dict[tuple[int, ...], list[int]]] = {}
    for i, request in enumerate(requests):
        bucket = min((b for b in max_prompts if b >= len(request.prompt_ids)), default=0)
        if not bucket:
            raise ValueError(
                f"prompt of {len(request.prompt_ids)} tokens ({request.name}); config.rollout.prompt_buckets end at {max(max_prompts)}"
            )
        by_bucket.setdefault(bucket, {}).setdefault(request.prompt_ids, []).append(i)
    waves = []
    for bucket, prompts in sorted(by_bucket.items()):
        waiting = [(prompt, i) for prompt, members in prompts.items() for i in members]
        while waiting:
            wave, waiting = _fill(waiting, bucket, num_shards, max_prompts[bucket], max_rollouts)
            waves.append(wave)
    return waves


def _fill(
    waiting: list[tuple[tuple[int, ...], int]], bucket: int, num_shards: int, max_prompts: int, max_rollouts: int
) -> tuple[Wave, list[tuple[tuple[int, ...], int]]]:
    fair = min(-(-len(waiting) // num_shards), max_rollouts)
    shards, taken = [ShardPlan() for _ in range(num_shards)], 0
    for shard in shards:
        while taken < len(waiting) and len(shard.queue) < fair:
            prompt, i = waiting[taken]
            if not shard.prompts or shard.prompts[-1] != prompt:
                if len(shard.prompts) == max_prompts:
                    break
                shard.prompts.append(prompt)
            shard.queue.append((i, len(shard.prompts) - 1))
            taken += 1
    return Wave(bucket, shards), waiting[taken:]
