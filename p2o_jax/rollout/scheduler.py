"""Which requests run together: by prompt length, in waves of fixed capacity, divided over
shards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from p2o_jax.types import Request

Pending = list[tuple[tuple[int, ...], int]]  # (prompt, request index), grouped by prompt


@dataclass
class ShardPlan:
    """The work of a shard in a wave: distinct prompts, and (request index, row of its prompt) in
    queue order.
    """

    prompts: list[tuple[int, ...]] = field(default_factory=list)
    queue: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Wave:
    """One run of the sampling programs of a prompt bucket."""

    bucket: int
    shards: list[ShardPlan]


def plan(
    requests: Sequence[Request], max_prompts: Mapping[int, int], num_shards: int, max_rollouts: int
) -> list[Wave]:
    """Returns waves that run every request once.

    Each shard of a wave has at most `max_prompts[bucket]` distinct prompts and `max_rollouts`
    rollouts. Rollouts of a prompt are adjacent. Within these limits, shards get equal numbers of
    expected tokens, each a mix of long and short rollouts, and start with the long ones. They thus
    finish at about the same time, without waiting for a long rollout that started last.

    Raises:
        ValueError: a prompt is longer than the largest bucket.
    """
    by_bucket: dict[int, dict[tuple[int, ...], list[int]]] = {}
    for i, request in enumerate(requests):
        bucket = min((b for b in max_prompts if b >= len(request.prompt_ids)), default=0)
        if not bucket:
            raise ValueError(
                f"prompt of {len(request.prompt_ids)} tokens ({request.name});"
                f" the largest of config.rollout.prompt_buckets is {max(max_prompts)}"
            )
        by_bucket.setdefault(bucket, {}).setdefault(request.prompt_ids, []).append(i)
    known = [request.expected_tokens for request in requests if request.expected_tokens]
    mean = sum(known) / len(known) if known else 1.0
    weight = [request.expected_tokens or mean for request in requests]
    waves = []
    for bucket, prompts in sorted(by_bucket.items()):
        pending = [(prompt, i) for prompt, members in prompts.items() for i in members]
        while pending:
            taken, pending = (
                pending[: num_shards * max_rollouts],
                pending[num_shards * max_rollouts :],
            )
            shards, rest = _split(
                _mixed(taken, weight, num_shards),
                weight,
                num_shards,
                max_prompts[bucket],
                max_rollouts,
            )
            pending = rest + pending
            waves.append(Wave(bucket, [_longest_first(shard, weight) for shard in shards]))
    return waves


def check(requests: Sequence[Request], vocab: int) -> None:
    """Checks that all token ids of prompts are in the embedding, and limits of responses.

    Raises:
        ValueError: a prompt holds an id outside 0 ... vocab - 1, or a limit is negative.
    """
    for request in requests:
        if request.max_new_tokens < 0:
            raise ValueError(
                f"max_new_tokens={request.max_new_tokens} ({request.name}); 0 is the call's limit"
            )
    for prompt, name in {request.prompt_ids: request.name for request in requests}.items():
        if prompt and not 0 <= min(prompt) <= max(prompt) < vocab:
            invalid = max(prompt) if max(prompt) >= vocab else min(prompt)
            raise ValueError(
                f"prompt with the token id {invalid} ({name}); the model's embedding has the ids 0"
                f" to {vocab - 1}"
            )


def _mixed(taken: Pending, weight: Sequence[float], num_shards: int) -> Pending:
    """Reorders whole prompts so that each num_shards-th part of the list holds long and short ones
    alike.

    Prompts are distributed over the shards in order of falling expected length, in alternating
    direction; the shares are then concatenated.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for prompt, i in taken:
        groups.setdefault(prompt, []).append(i)
    longest_first = sorted(groups.items(), key=lambda group: -weight[group[1][0]])
    shares: list[Pending] = [[] for _ in range(num_shards)]
    for n, (prompt, members) in enumerate(longest_first):
        turn, place = divmod(n, num_shards)
        shares[place if turn % 2 == 0 else -1 - place].extend((prompt, i) for i in members)
    return [item for share in shares for item in share]


def _split(
    pending: Pending, weight: Sequence[float], num_shards: int, max_prompts: int, max_rollouts: int
) -> tuple[list[ShardPlan], Pending]:
    """Splits rollouts over shards by expected tokens; returns those left over.

    Each shard takes an equal part of the remaining expected tokens, but at least as many rollouts
    as the shards after it cannot hold.

    Args:
        pending: rollouts to split, grouped by prompt.
        weight: expected tokens of each request.
        num_shards: shards of the mesh.
        max_prompts: distinct prompts that a shard can hold.
        max_rollouts: rollouts that a shard can hold.
    """
    shards = [ShardPlan() for _ in range(num_shards)]
    left = sum(weight[i] for _, i in pending)
    at = 0
    for n, shard in enumerate(shards):
        share, load = left / (num_shards - n), 0.0
        at_least = len(pending) - at - (num_shards - n - 1) * max_rollouts
        while at < len(pending) and len(shard.queue) < max_rollouts:
            prompt, i = pending[at]
            if len(shard.queue) >= at_least and load + weight[i] / 2 > share:
                break
            if not shard.prompts or shard.prompts[-1] != prompt:
                if len(shard.prompts) == max_prompts:
                    break
                shard.prompts.append(prompt)
            shard.queue.append((i, len(shard.prompts) - 1))
            load += weight[i]
            at += 1
        left -= load
    return shards, pending[at:]


def _longest_first(shard: ShardPlan, weight: Sequence[float]) -> ShardPlan:
    """Returns the shard with its prompts, and their rollouts, by falling expected length."""
    members: dict[int, list[int]] = {}
    for i, row in shard.queue:
        members.setdefault(row, []).append(i)
    order = sorted(members, key=lambda row: -weight[members[row][0]])
    return ShardPlan(
        [shard.prompts[row] for row in order],
        [(i, new) for new, row in enumerate(order) for i in members[row]],
    )
