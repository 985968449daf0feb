"""Bytes on one device against what arrays really take there."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from p2o_jax.models import sharding
from p2o_jax.models.device_memory import array_bytes, bytes_per_device, kv_bytes_per_token
from tests.factories import make_spec

MESH = sharding.make_mesh((1, 4, 2))


@pytest.mark.parametrize(
    ("shape", "axes", "dtype"),
    [((8, 6), ("fsdp", "tensor"), "float32"), ((8, 3), ("fsdp",), "bfloat16"), ((), (), "int32")],
)
def test_arrays_take_what_is_counted(shape, axes, dtype):
    split = NamedSharding(MESH, PartitionSpec(*axes))
    x = jax.device_put(jnp.zeros(shape, dtype), split)
    real = x.addressable_shards[0].data.nbytes
    assert array_bytes(x, split) == bytes_per_device({"x": x}) == bytes_per_device(x, split) == real


def test_random_keys_and_arguments_that_are_left_out():
    split = NamedSharding(MESH, PartitionSpec())
    assert array_bytes(jax.device_put(jax.random.key(0), split), split) == 8
    assert bytes_per_device([jnp.zeros(4), jnp.zeros(2)], [None, split]) == 8


def test_keys_and_values_of_a_token():
    spec = make_spec()  # 2 layers, 2 KV heads of 8 numbers
    assert kv_bytes_per_token(spec, jnp.float32) == 2 * 2 * 2 * 8 * 4
    assert kv_bytes_per_token(spec, jnp.bfloat16, 2) == 2 * 2 * 1 * 8 * 2
    assert kv_bytes_per_token(spec, jnp.int8, 4) == 2 * 2 * 2 * (8 + 4)
