"""How the comparison of meshes counts."""

import jax
import numpy as np
import pytest

from benchmarks import sharding as compared


def test_all_meshes_of_eight_are_compared():
    result = compared.meshes(8)
    assert len(result) == len(set(result)) == 10 and all(d * f * t == 8 for d, f, t in result)


def test_differences_by_hand():
    """Params moved by 3 and 4 (5 in all), by another mesh half a unit elsewhere; one of four
    texts is another.
    """
    start = jax.tree.map(np.asarray, compared.transformer.init(compared.SPEC, jax.random.key(0)))
    alone, other = (jax.tree.map(np.array, start) for _ in range(2))
    alone["final_norm"][:2] += (3, 4)
    other["final_norm"][:3] += (3, 4, 0.5)
    one = {"params": alone, "logps": [np.zeros(2)], "texts": [1, 2, 3, 4]}
    two = {"params": other, "logps": [np.array([0.1, -0.2])], "texts": [1, 2, 3, 5]}
    assert compared.differences(two, one) == pytest.approx(
        {"params": 0.1, "logps": 0.2, "texts": 0.75}
    )


def test_without_plans_their_columns_are_empty():
    row = {"params": 1e-5, "logps": 2e-5, "texts": 1.0, "update_cpu_s": 1.5, "sampling_cpu_s": 0.5}
    text = compared.table(
        {
            "1 x 8 x 1": row,
            "8 x 1 x 1": row
            | {"sent_mb": 2.5, "ratio": 1.1, "update_ms": 3.0, "decode_ms": 4.0, "mib": 9.0},
        }
    )
    assert "| 1 x 8 x 1 | 1.0e-05 | 2.0e-05 | 100% | 1.5 | 0.5 |  |  |  |  |  |" in text
    assert "| 2.5 | 1.1 | 3.0 | 4.0 | 9.0 |" in text
