"""Bytes of arrays on one device, from shapes, dtypes and shardings; nothing is allocated."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from p2o_jax.models.spec import ModelSpec

KEY_BYTES = 8  # of a random key
SCALE_BYTES = 4  # of the scale beside each int8 vector of a KV cache


def array_bytes(x: Any, sharding: Any) -> int:
    """Bytes of an array, or of its abstract value, on one device.

    0 for an argument that a program leaves out, whose sharding is None.
    """
    if sharding is None:
        return 0
    item = KEY_BYTES if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
    return math.prod(sharding.shard_shape(x.shape)) * item


def bytes_per_device(tree: Any, shardings: Any = None) -> int:
    """Bytes of a tree of arrays, or of abstract values, on one device.

    Args:
        shardings: a tree of the same structure; by default the leaves' own.
    """
    if shardings is None:
        return sum(array_bytes(x, x.sharding) for x in jax.tree.leaves(tree))
    return sum(jax.tree.leaves(jax.tree.map(array_bytes, tree, shardings)))


def kv_bytes_per_token(spec: ModelSpec, dtype: Any, tensor: int = 1) -> int:
    """Bytes of one token's keys and values in all layers that keep them, on one of `tensor`
    devices.
    """
    heads = spec.kv_heads if spec.kv_heads % tensor else spec.kv_heads // tensor
    scale = SCALE_BYTES if dtype == jnp.int8 else 0
    layers = sum(not layer.delta for layer in spec.layer_types)
    return 2 * layers * heads * (spec.head_dim * jnp.dtype(dtype).itemsize + scale)


def state_bytes(spec: ModelSpec, tensor: int = 1) -> int:
    """Bytes of one sequence's states of Gated DeltaNet, float32, on one of `tensor` devices."""
    return 4 * sum(layer.delta.state_size for layer in spec.layer_types if layer.delta) // tensor
