"""Memory of sampling: computed by hand, and rejected with the arithmetic where it does not fit."""

import jax
import jax.numpy as jnp
import pytest

from p2o_jax.config import ConfigError, RolloutConfig
from p2o_jax.models import sharding
from p2o_jax.models.spec import num_params
from p2o_jax.rollout import memory
from p2o_jax.rollout.engine import Engine
from tests.factories import make_spec

SPEC = make_spec()


def make_engine(slots=16, shape=(1, 1, 1), **settings):
    mesh = sharding.make_mesh(shape, devices=jax.devices()[: shape[0] * shape[1] * shape[2]])
    usual = {
        "questions": 8,
        "group_size": 4,
        "prompt_buckets": (16, 64),
        "prompt_cache_tokens": 1024,
        "prefill_tokens": 64,
    }
    return Engine(
        SPEC, mesh, RolloutConfig(slots=slots, **{**usual, **settings}), [40], (7,), 0, jnp.bfloat16
    )


def test_the_plan_by_hand():
    got = memory.plan(make_engine(), others=1000)
    # bytes of keys and values, bfloat16
    position = SPEC.layers * 2 * SPEC.kv_heads * SPEC.head_dim * 2
    assert got.weights == 2 * num_params(SPEC)
    assert got.prompt_cache == 1024 * position  # 64 rows of 16 or 16 of 64
    assert got.slots == 16 * ((40 + 64) * position + 3 * 4 + 1)  # on CPU with a copy of the prompt
    assert got.outputs == 2 * (32 * (40 * 8 + 2 * 4) + 2 * 4)
    assert got.others == 1000 and got.total == sum(
        (got.weights, got.prompt_cache, got.slots, got.outputs, got.temporaries, 1000)
    )


def test_shards_divide_it_and_int8_halves_it():
    whole, sharded, small = (
        memory.plan(make_engine(**c)) for c in ({}, {"shape": (2, 2, 2)}, {"cache_dtype": "int8"})
    )
    # rows over data x fsdp, heads over tensor
    assert sharded.prompt_cache * 8 == whole.prompt_cache
    assert whole.slots / 8.5 < sharded.slots < whole.slots / 7
    assert small.prompt_cache == 1024 * SPEC.layers * 2 * SPEC.kv_heads * (SPEC.head_dim + 4)


def test_slots_are_as_many_as_fit(monkeypatch):
    for slots, of, extra in (
        (8, 8, 0),
        (7, 8, -1),
        (12, 12, 0),
        (10, 12, -1),
        (3, 4, -1),
        (2, 3, -1),
    ):
        needed = memory.plan(make_engine(of), others=500).total
        monkeypatch.setattr(
            memory, "device_bytes", lambda mesh, n=needed, e=extra: (n + e) / memory.USABLE + 1e-6
        )
        assert memory.fitting(make_engine, 0, 500).sizes[0] == slots
    monkeypatch.undo()
    assert memory.fitting(make_engine, 0).sizes[0] == 32  # every rollout of a step
    assert memory.fitting(make_engine, 3).sizes[0] == 3


def test_what_does_not_fit_is_told_with_the_arithmetic(monkeypatch):
    monkeypatch.setattr(memory, "device_bytes", lambda mesh: 1 << 17)
    with pytest.raises(ConfigError) as e:
        memory.fitting(make_engine, 16, 1 << 30)
    for part in (
        "16 slots x 40 tokens 0.00 GiB",
        "held by the learner 1.00 GiB",
        "= 1.00 GiB",
        "config.rollout.prompt_cache_tokens",
        "int8",
    ):
        assert part in str(e.value)
    with pytest.raises(ConfigError, match="1 slots x 40 tokens"):
        memory.fitting(make_engine, 0, 1 << 30)


def test_the_tensor_axis_that_would_do_is_a_remedy(monkeypatch):
    """It halves the weights, and quarters them; where that is not enough, or nothing is left to
    split, the message leaves it out.
    """
    needed = memory.plan(make_engine(8, (1, 4, 1)))

    def message(missing, shape=(1, 4, 1)):
        monkeypatch.setattr(
            memory, "device_bytes", lambda mesh: (needed.total - missing) / memory.USABLE + 1e-6
        )
        with pytest.raises(ConfigError) as e:
            memory.fitting(lambda slots: make_engine(8, shape), 8)
        return str(e.value)

    assert "set config.mesh.tensor=2 (now 1)" in message(
        needed.weights // 2
    ) and "0.00 GiB too much" in message(1)
    assert "set config.mesh.tensor=4 (now 1)" in message(needed.weights // 2 + 1)
    assert "mesh.tensor" not in message(needed.weights * 3 // 4 + 1) + message(
        needed.weights // 2, (1, 1, 1)
    )


def test_the_memory_of_this_machine():
    mesh = sharding.make_mesh((1, 1, 1), devices=jax.devices()[:1])
    assert memory.device_bytes(mesh) > 1 << 30
