"""The output head on meshes: the same numbers as on one device, with its gradient split like the
weight.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from p2o_jax.models import chunked_logprobs, sharding

V, D, ROWS, N = 60, 16, 8, 12  # 60 rows over eight devices are padded to 64


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param((1, 8, 1), "float32", marks=pytest.mark.slow),
        ((2, 2, 2), "float32"),
        pytest.param((2, 1, 4), "float32", marks=pytest.mark.slow),
        ((1, 8, 1), "bfloat16"),
    ],
)
def test_a_split_head_has_the_plain_log_probs_and_gradients(shape, dtype):
    mesh = sharding.make_mesh(shape)
    parts = sharding.num_shards(mesh)
    split, rows = (
        NamedSharding(mesh, PartitionSpec("tensor", "fsdp")),
        NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES)),
    )
    head_VD = jax.random.normal(jax.random.key(0), (V, D))
    x = jax.random.normal(jax.random.key(1), (ROWS, N, D)).astype(dtype)
    target, wanted = jax.random.randint(jax.random.key(2), (2, ROWS, N), 0, V)
    weight = jax.random.normal(jax.random.key(3), (2, ROWS, N))

    def loss(head_VD, x, target, wanted, weight, parts, mesh):
        x, target, wanted = (
            y.reshape(parts, -1, *y.shape[2:]) for y in (x, target, wanted > V // 3)
        )
        logps = jnp.stack(
            chunked_logprobs.token_logps(x, head_VD, target, wanted, 0.7, V, 5, mesh=mesh)
        )
        return jnp.sum(logps * weight.reshape(logps.shape))

    both = {"argnums": (0, 1)}
    plain = jax.value_and_grad(lambda *a: loss(*a, 1, None), **both)(
        head_VD, x, target, wanted, weight
    )
    placed = jax.device_put((head_VD, x, target, wanted), (split, rows, rows, rows))
    split_result = jax.jit(jax.value_and_grad(lambda *a: loss(*a, parts, mesh), **both))(
        *placed, weight
    )
    # a sum of eight parts, each rounded
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 2e-2, "atol": 0.1}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), **close),
        split_result,
        plain,
    )
    assert (
        split_result[1][0].sharding.is_equivalent_to(split, 2)
        and split_result[1][0].dtype == jnp.float32
    )


def test_rounds_of_groups_by_hand():
    """Device 5 of 8 first gets the second half, then the second quarter of that: part 5."""
    assert sharding._rounds(8) == [[[0, 4], [1, 5], [2, 6], [3, 7]], [[0, 1, 2, 3], [4, 5, 6, 7]]]
    assert (
        sharding._rounds(1) == []
        and sharding._rounds(5) == [[[0, 1, 2, 3, 4]]]
        and [len(g[0]) for g in sharding._rounds(96)] == [2, 3, 4, 4]
    )
