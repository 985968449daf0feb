"""Which requests run together: split by prompt length, then packed into waves of fixed capacity,
and dealt to shards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from p2o_jax.types import Request

Waiting = list[tuple[tuple[int, ...], int]]  # (prompt, request index), a prompt's together


@dataclass
class ShardPlan:
    """What one shard samples in a wave: distinct prompts, and (request index, row of its prompt)
    in queue order.
    """

    prompts: list[tuple[int, ...]] = field(default_factory=list)
    queue: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Wave:
    """One run of the sampling programs of a prompt-length bucket."""

    bucket: int
    shards: list[ShardPlan]


def plan(
    requests: Sequence[Request], max_prompts: Mapping[int, int], num_shards: int, max_rollouts: int
) -> list[Wave]:
    """The waves that run every request once.

    Each shard of a wave has at most `max_prompts[bucket]` distinct prompts and `max_rollouts`
    rollouts. Rollouts of the same prompt stand next to each other. Shards of a wave get equal
    numbers of expected tokens as far as all this allows, each of them long and short ones, and
    begins with the long ones: so they end together, and none on a long rollout that it began last.

    Raises:
        ValueError: a prompt is longer than the largest bucket.
    """
    by_bucket: dict[int, dict[tuple[int, ...], list[int]]] = {}
    for i, request in enumerate(requests):
        bucket = min((b for b in max_prompts if b >= len(request.prompt_ids)), default=0)
        if not bucket:
            raise ValueError(
                f"prompt of {len(request.prompt_ids)} tokens ({request.name});"
                f" config.rollout.prompt_buckets end at {max(max_prompts)}"
            )
        by_bucket.setdefault(bucket, {}).setdefault(request.prompt_ids, []).append(i)
    known = [request.expected_tokens for request in requests if request.expected_tokens]
    usual = sum(known) / len(known) if known else 1.0
    weight = [request.expected_tokens or usual for request in requests]
    waves = []
    for bucket, prompts in sorted(by_bucket.items()):
        waiting = [(prompt, i) for prompt, members in prompts.items() for i in members]
        while waiting:
            taken, waiting = (
                waiting[: num_shards * max_rollouts],
                waiting[num_shards * max_rollouts :],
            )
            shards, rest = _deal(
                _mixed(taken, weight, num_shards),
                weight,
                num_shards,
                max_prompts[bucket],
                max_rollouts,
            )
            waiting = rest + waiting
            waves.append(Wave(bucket, [_longest_first(shard, weight) for shard in shards]))
    return waves


def check_ids(requests: Sequence[Request], vocab: int) -> None:
    """Raises ValueError if a prompt holds a token id that is not in 0..vocab - 1."""
    for prompt, name in {request.prompt_ids: request.name for request in requests}.items():
        if prompt and not 0 <= min(prompt) <= max(prompt) < vocab:
            beyond = max(prompt) if max(prompt) >= vocab else min(prompt)
            raise ValueError(
                f"prompt with the token id {beyond} ({name}); the model's embedding has the ids 0"
                f" to {vocab - 1}"
            )


def _mixed(taken: Waiting, weight: Sequence[float], num_shards: int) -> Waiting:
    """The same, prompt by prompt, in an order of which every num_shards-th part holds long and
    short ones alike.

    Prompts are dealt out longest first, back and forth, as cards to that many hands, and the hands
    laid end to end.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for prompt, i in taken:
        groups.setdefault(prompt, []).append(i)
    longest_first = sorted(groups.items(), key=lambda group: -weight[group[1][0]])
    hands: list[Waiting] = [[] for _ in range(num_shards)]
    for n, (prompt, members) in enumerate(longest_first):
        turn, place = divmod(n, num_shards)
        hands[place if turn % 2 == 0 else -1 - place].extend((prompt, i) for i in members)
    return [one for hand in hands for one in hand]


def _deal(
    waiting: Waiting, weight: Sequence[float], num_shards: int, max_prompts: int, max_rollouts: int
) -> tuple[list[ShardPlan], Waiting]:
    """The shards, and what had no room: each takes its part of the weight that is left, no fewer
    than the others could not hold.
    """
    shards = [ShardPlan() for _ in range(num_shards)]
    left = sum(weight[i] for _, i in waiting)
    at = 0
    for n, shard in enumerate(shards):
        share, load = left / (num_shards - n), 0.0
        at_least = len(waiting) - at - (num_shards - n - 1) * max_rollouts
        while at < len(waiting) and len(shard.queue) < max_rollouts:
            prompt, i = waiting[at]
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
    return shards, waiting[at:]


def _longest_first(shard: ShardPlan, weight: Sequence[float]) -> ShardPlan:
    """The shard with its prompts, and their rollouts, in order of falling expected length."""
    members: dict[int, list[int]] = {}
    for i, row in shard.queue:
        members.setdefault(row, []).append(i)
    order = sorted(members, key=lambda row: -weight[members[row][0]])
    return ShardPlan(
        [shard.prompts[row] for row in order],
        [(i, new) for new, row in enumerate(order) for i in members[row]],
    )
