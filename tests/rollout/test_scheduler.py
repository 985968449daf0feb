"""Which requests run together: every request once, within capacity, with balanced shards."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2o_jax.rollout import scheduler
from p2o_jax.types import Request

PROMPTS = st.tuples(st.integers(0, 12), st.integers(1, 16))  # which prompt, and how long


def make_requests(drawn) -> list[Request]:
    return [Request((kind,) * length, f"r{i}") for i, (kind, length) in enumerate(drawn)]


@settings(deadline=None, max_examples=150)
@given(
    drawn=st.lists(PROMPTS, max_size=70),
    num_shards=st.sampled_from([1, 2, 3, 8]),
    max_prompts=st.integers(1, 5),
    max_rollouts=st.integers(1, 9),
)
def test_every_request_runs_once_within_capacity(drawn, num_shards, max_prompts, max_rollouts):
    requests = make_requests(drawn)
    buckets = {4: max_prompts, 16: max(max_prompts // 2, 1)}
    planned = scheduler.plan(requests, buckets, num_shards, max_rollouts)
    seen = []
    for wave in planned:
        assert len(wave.shards) == num_shards and any(s.queue for s in wave.shards)
        for shard in wave.shards:
            assert len(shard.prompts) <= buckets[wave.bucket] and len(shard.queue) <= max_rollouts
            assert {row for _, row in shard.queue} == set(range(len(shard.prompts)))
            # a prompt's rollouts together
            assert [row for _, row in shard.queue] == sorted(row for _, row in shard.queue)
            assert len(set(shard.prompts)) == len(shard.prompts)
            for i, row in shard.queue:
                assert requests[i].prompt_ids == shard.prompts[row]
                assert len(requests[i].prompt_ids) <= wave.bucket
                assert wave.bucket == min(b for b in buckets if b >= len(requests[i].prompt_ids))
                seen.append(i)
    assert sorted(seen) == list(range(len(requests)))


@settings(deadline=None, max_examples=60)
@given(
    groups=st.integers(1, 40),
    group_size=st.integers(1, 8),
    num_shards=st.sampled_from([1, 2, 4, 8]),
)
def test_shards_get_equal_numbers_of_rollouts(groups, group_size, num_shards):
    """With unknown lengths and few prompts, everything fits one wave."""
    requests = make_requests(
        [(g % 13, 1 + g // 13) for g in range(groups) for _ in range(group_size)]
    )
    (wave,) = scheduler.plan(requests, {16: 1000}, num_shards, 1000)
    loads = [len(s.queue) for s in wave.shards]
    assert sum(loads) == len(requests)
    assert max(loads) - min(loads) <= 1
    # a prompt is prefilled twice only at a seam
    assert sum(len(s.prompts) for s in wave.shards) <= groups + num_shards - 1


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.sampled_from([5.0, 40.0, 300.0, 2000.0]), min_size=8, max_size=60),
    num_shards=st.sampled_from([2, 4, 8]),
    group_size=st.integers(1, 4),
)
def test_shards_get_equal_numbers_of_expected_tokens_long_ones_first(
    lengths, num_shards, group_size
):
    requests = [
        Request((i,), f"r{i}/{g}", length)
        for i, length in enumerate(lengths)
        for g in range(group_size)
    ]
    (wave,) = scheduler.plan(requests, {1: 1000}, num_shards, 1000)
    queues = [[requests[i].expected_tokens for i, _ in shard.queue] for shard in wave.shards]
    assert sum(map(len, queues)) == len(requests)
    fair = sum(map(sum, queues)) / num_shards
    assert all(abs(sum(queue) - fair) <= max(lengths) for queue in queues)
    assert all(queue == sorted(queue, reverse=True) for queue in queues)


def test_every_shard_gets_long_and_short_ones():
    lengths = [1000.0, 10.0] * 8
    (wave,) = scheduler.plan(
        [Request((i,), f"r{i}", n) for i, n in enumerate(lengths)], {1: 100}, 4, 100
    )
    assert [[lengths[i] for i, _ in shard.queue] for shard in wave.shards] == [
        [1000.0] * 2 + [10.0] * 2
    ] * 4


def test_what_has_no_room_waits_for_the_next_wave():
    requests = [Request((i,), f"r{i}", 1.0 + (i == 0) * 99) for i in range(10)]
    first, second = scheduler.plan(requests, {1: 100}, 2, 4)
    assert [len(s.queue) for s in first.shards] == [4, 4] and [
        len(s.queue) for s in second.shards
    ] == [1, 1]


def test_nothing_to_do_is_no_wave():
    assert scheduler.plan([], {8: 2}, 4, 4) == []


def test_a_prompt_longer_than_the_largest_bucket_is_named():
    with pytest.raises(
        ValueError,
        match=r"prompt of 17 tokens \(mine\); the largest of config\.rollout\.prompt_buckets is 16",
    ):
        scheduler.plan([Request((1,) * 17, "mine")], {4: 1, 16: 1}, 1, 1)
