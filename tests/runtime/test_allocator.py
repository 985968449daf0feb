"""Freed memory goes back to the system."""

import ctypes

import numpy as np
import pytest

from p2o_jax.runtime import allocator

PIECE, COUNT = 100_000, 2000  # bytes; pieces of this size are not mapped each by itself


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)
def test_what_is_between_arrays_that_stay_goes_back():
    arrays = [np.ones(PIECE, np.uint8) for _ in range(COUNT)]
    stay = arrays[::50]
    del arrays
    before = allocator.held_bytes()
    allocator.give_back("tpu")
    assert before - allocator.held_bytes() < PIECE * COUNT / 10
    allocator.give_back("cpu")
    assert before - allocator.held_bytes() > PIECE * COUNT / 2 and all(x.all() for x in stay)
