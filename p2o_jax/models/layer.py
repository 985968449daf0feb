"""One layer of the transformer, as a Flax NNX module over the weights of `spec.block_weights`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from p2o_jax.models import rope
from p2o_jax.models.spec import LayerType, ModelSpec, Weight, block_weights

Attend = Callable[[LayerType, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
Rotation = tuple[jax.Array, jax.Array]  # cos and sin of the positions, [B, T, C/2]


class Block(nnx.Module):
    """One layer: attention and SwiGLU, each after an RMSNorm and added to the residual stream.
    Weights: `spec.block_weights`.
    """

    attn_norm: nnx.Param
    q: nnx.Param
    k: nnx.Param
    v: nnx.Param
    o: nnx.Param
    mlp_norm: nnx.Param
    gate: nnx.Param
    up: nnx.Param
    down: nnx.Param
    q_norm: nnx.Param
    k_norm: nnx.Param
    q_bias: nnx.Param
    k_bias: nnx.Param
    v_bias: nnx.Param

    def __init__(self, spec: ModelSpec, layer: LayerType):
        self.spec, self.layer = spec, layer
        declare(self, block_weights(spec, layer))

    def __call__(
        self, x_BTD: jax.Array, rotation: Rotation | None, attend: Attend, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Returns the layer's output and its new cache.

        Args:
            x_BTD: residual stream.
            rotation: rotates queries and keys to their positions; None: they have none.
            attend: attention of the new queries, keys and values, given the cache.
            cache: this layer's cache, passed to `attend`.
        """
        B, T, D = x_BTD.shape
        # flat rows: on CPU the weights' gradients are several times faster than with [B, T]
        x_ND = x_BTD.reshape(-1, D)
        attended_ND, cache = self._attention(x_ND, (B, T), rotation, attend, cache)
        x_ND = x_ND + attended_ND
        return (x_ND + self._mlp(x_ND)).reshape(B, T, D), cache

    @jax.named_scope("attention")
    def _attention(
        self,
        x_ND: jax.Array,
        shape: tuple[int, int],
        rotation: Rotation | None,
        attend: Attend,
        cache: Any,
    ) -> tuple[jax.Array, Any]:
        """Returns the attention's contribution to the residual stream, and the new cache."""
        (B, T), eps, dtype = shape, self.spec.norm_eps, x_ND.dtype
        h = rms_norm(x_ND, self.attn_norm[...], eps)
        q, k, v = (
            self._project(name, h).reshape(B * T, -1, self.spec.head_dim)
            for name in ("q", "k", "v")
        )
        if self.spec.qkv_bias:
            q, k, v = (
                x + over_rows(b[...].astype(dtype), x)
                for x, b in ((q, self.q_bias), (k, self.k_bias), (v, self.v_bias))
            )
        if self.spec.qk_norm:
            q, k = rms_norm(q, self.q_norm[...], eps), rms_norm(k, self.k_norm[...], eps)
        q, k, v = (x.reshape(B, T, *x.shape[1:]) for x in (q, k, v))
        if rotation is not None:
            q, k = (rope.rotate(x, *rotation) for x in (q, k))
        attended, cache = attend(self.layer, q, k, v, cache)
        return self._project("o", attended.astype(dtype).reshape(B * T, -1)), cache

    @jax.named_scope("mlp")
    def _mlp(self, x_ND: jax.Array) -> jax.Array:
        """Returns the MLP's contribution to the residual stream."""
        h = rms_norm(x_ND, self.mlp_norm[...], self.spec.norm_eps)
        gated = jax.nn.silu(self._project("gate", h)) * self._project("up", h)
        return self._project("down", gated)

    def _project(self, name: str, x_NI: jax.Array) -> jax.Array:
        """Multiplies [N, inputs] by a projection, giving [N, outputs], and adds its low-rank
        adapter if there is one.
        """
        inputs = x_NI.shape[1]
        y = x_NI @ getattr(self, name)[...].reshape(inputs, -1).astype(x_NI.dtype)
        lora = self.spec.lora
        if lora is None or name not in lora.targets:
            return y
        a, b = getattr(self, f"{name}_lora_a")[...], getattr(self, f"{name}_lora_b")[...]
        low = x_NI @ a.reshape(inputs, -1).astype(x_NI.dtype) * (lora.alpha / lora.rank)
        return y + low @ b.reshape(lora.rank, -1).astype(x_NI.dtype)


@jax.named_scope("norm")
def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Returns x divided by the root of its mean square (float32), times the weight, in x's
    dtype.
    """
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * over_rows(weight.astype(jnp.float32), x)).astype(x.dtype)


def over_rows(weight: jax.Array, x: jax.Array) -> jax.Array:
    """Adds leading axes of size 1 to the weight, so that it broadcasts against x."""
    return weight.reshape((1,) * (x.ndim - weight.ndim) + weight.shape)


def declare(module: nnx.Module, table: Mapping[str, Weight]) -> None:
    """Declares a module's params with their shapes."""
    for name, w in table.items():
        setattr(module, name, nnx.Param(jax.ShapeDtypeStruct(w.shape, jnp.float32)))


@functools.cache
def block_graph(spec: ModelSpec, layer: LayerType) -> Any:
    """Returns the graph definition of a layer of this type, to merge with its params."""
    return nnx.split(Block(spec, layer))[0]
