"""Which tokens are trained, on which prompt, and their places in the packed rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2o_jax.config import DistillConfig
from p2o_jax.rl import batch
from p2o_jax.types import Rollout
from tests.factories import make_completion, make_rollout

SEQUENCES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 11)), max_size=30)


def rollout(template: str, score: float, plain=(1, 2), response=(7, 8, 9)) -> Rollout:
    prompt = (5, 6, *plain) if template.strip() else plain
    return make_rollout(
        template=template,
        prompt_ids=prompt,
        plain_ids=plain,
        completion=make_completion(response),
        score=score,
    )


@settings(deadline=None, max_examples=60)
@given(lengths=SEQUENCES, row_tokens=st.integers(20, 45), micro_rows=st.sampled_from([1, 3, 4]))
def test_pack_has_each_sequence_once_and_nothing_else(lengths, row_tokens, micro_rows):
    sequences = [
        (tuple(range(100 * n, 100 * n + p)), np.arange(100 * n + p, 100 * n + p + r))
        for n, (p, r) in enumerate(lengths, 1)
    ]
    max_micro = -(-len(sequences) // micro_rows) if sequences else 1
    packed = batch.pack(sequences, row_tokens, micro_rows, max_micro, pad_id=-1)
    assert all(x.shape[:3] == (max_micro, micro_rows, row_tokens) for x in packed.rows)
    flat = packed.flat
    assert len(packed.places) == len(sequences)
    taken = np.zeros(flat.token.shape, int)
    for (prompt, response), (r, first, end) in zip(sequences, packed.places, strict=True):
        start = first - len(prompt)
        np.testing.assert_array_equal(flat.token[r, start:end], [*prompt, *response])
        np.testing.assert_array_equal(flat.token[r, first:end], response)
        np.testing.assert_array_equal(flat.position[r, start:end], np.arange(end - start))
        segment = flat.segment[r, start]
        assert segment > 0
        np.testing.assert_array_equal(
            np.flatnonzero(flat.segment[r] == segment), np.arange(start, end)
        )
        taken[r, start:end] += 1
    assert taken.max(initial=0) <= 1
    np.testing.assert_array_equal(taken == 1, flat.segment > 0)
    assert np.all(flat.token[taken == 0] == -1)
    used_rows = np.flatnonzero(taken.any(axis=1))
    # a prefix of the rows; the rest is never computed
    np.testing.assert_array_equal(used_rows, np.arange(len(used_rows)))
    assert packed.num_micro == -(-len(used_rows) // micro_rows)
    assert not packed.rows.trained.any() and not packed.rows.weight.any()


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 20), max_size=40))
def test_first_fit_leaves_no_two_rows_that_would_fit_in_one(lengths):
    rows = batch.first_fit(lengths, 20)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    sums = sorted(sum(lengths[n] for n in row) for row in rows)
    assert all(s <= 20 for s in sums)
    assert len(sums) < 2 or sums[0] + sums[1] > 20


def test_first_fit_by_hand():
    assert batch.first_fit([4, 7, 3, 6, 4], 10) == [[1, 2], [3, 0], [4]]


def test_pack_refuses_a_sequence_longer_than_a_row():
    with pytest.raises(ValueError, match=r"a sequence of 6 tokens .* config\.optim\.row_tokens=5"):
        batch.pack([((1, 2, 3), np.array([4, 5, 6]))], 5, 1, 1, 0)


def test_minibatches_are_runs_in_order():
    examples = batch.examples([rollout("", 0.0)] * 5, np.arange(5.0)[None], DistillConfig())
    assert [[e.advantage for e in m] for m in batch.minibatches(examples, 2)] == [
        [0, 1],
        [2, 3],
        [4],
    ]
    assert batch.minibatches([], 2) == []


@pytest.mark.parametrize(
    ("mode", "trained_on"),
    [("ratio_mask", (1, 2)), ("plain", (1, 2)), ("importance", (1, 2)), ("off", (5, 6, 1, 2))],
)
def test_templated_rollouts_are_trained_on_the_plain_prompt_unless_distillation_is_off(
    mode, trained_on
):
    rollouts = [rollout("z", 1.0), rollout("", 0.0)]
    templated, plain = batch.examples(
        rollouts, np.array([[0.5, -0.5]], np.float32), DistillConfig(mode=mode)
    )
    assert templated.trained_on_ids == trained_on and templated.sampled_on_ids == (5, 6, 1, 2)
    assert templated.templated == (mode != "off")
    assert plain.trained_on_ids == plain.sampled_on_ids == (1, 2) and not plain.templated
    assert (templated.advantage, plain.advantage) == (0.5, -0.5)
    np.testing.assert_array_equal(templated.response_ids, [7, 8, 9])


def test_examples_keep_the_order_of_groups():
    rollouts = [rollout("", 0.0, plain=(q,)) for q in (1, 1, 2, 2)]
    examples = batch.examples(rollouts, np.array([[0.0, 1.0], [2.0, 3.0]]), DistillConfig())
    assert [(e.trained_on_ids, e.advantage) for e in examples] == [
        ((1,), 0.0),
        ((1,), 1.0),
        ((2,), 2.0),
        ((2,), 3.0),
    ]
    with pytest.raises(ValueError):
        batch.examples(rollouts, np.zeros((1, 2)), DistillConfig())


def test_drop_failed_templated_drops_only_those():
    rollouts = [rollout("z", 0.0), rollout("z", 1.0), rollout("", 0.0), rollout(" \n", 0.0)]
    advantage_QG = np.ones((1, 4))
    assert [
        e.trained
        for e in batch.examples(rollouts, advantage_QG, DistillConfig(drop_failed_templated=True))
    ] == [
        False,
        True,
        True,
        True,
    ]
    assert all(e.trained for e in batch.examples(rollouts, advantage_QG, DistillConfig()))
