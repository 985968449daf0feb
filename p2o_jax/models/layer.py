"""One layer of the transformer, as a Flax NNX module over the weights of `spec.block_weights`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from p2o_jax.models import delta_net, experts, lora, rope
from p2o_jax.models.rope import Rotation
from p2o_jax.models.spec import DeltaNet, LayerType, ModelSpec, Weight, block_weights


class Heads(NamedTuple):
    """What attention gets of the new tokens: queries and keys at their positions, values, and the
    score of each head's sink; None: no sinks.
    """

    q_BTHC: jax.Array
    k_BTKC: jax.Array
    v_BTKC: jax.Array
    sink_H: jax.Array | None = None


# (type of the layer, new tokens, the layer's cache) -> (output [B, T, H, C], new cache)
Attend = Callable[[LayerType, Heads, Any], tuple[jax.Array, Any]]
# (Gated DeltaNet, new tokens, the layer's cache) -> (output [B, T, V, c], new cache)
Recur = Callable[[DeltaNet, delta_net.Inputs, Any], tuple[jax.Array, Any]]


class Mixing(NamedTuple):
    """What a layer leaves to its caller: how its tokens see each other, and where its experts are.

    Args:
        attend: attention of the new tokens to each other and to the layer's cache.
        recur: Gated DeltaNet of the new tokens, given the layer's cache.
        mix_experts: weighted sum of each token's experts.
        watch: what is returned of a layer's routing, given the recorded choices; None: nothing.
    """

    attend: Attend
    recur: Recur
    mix_experts: experts.Mixture = experts.mixture
    watch: Callable[[experts.Routed, jax.Array | None], Any] | None = None


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class Block(nnx.Module):
    """One layer: attention or Gated DeltaNet, and a gated MLP or experts, each added to the
    residual stream. Weights: `spec.block_weights`; one that the layer does not have is not set.
    """

    q: nnx.Param
    k: nnx.Param
    v: nnx.Param
    o: nnx.Param
    sinks: nnx.Param
    conv_q: nnx.Param
    conv_k: nnx.Param
    conv_v: nnx.Param
    a_log: nnx.Param
    step_bias: nnx.Param
    delta_norm: nnx.Param
    attn_norm: nnx.Param
    attn_post_norm: nnx.Param
    mlp_norm: nnx.Param
    mlp_post_norm: nnx.Param
    q_norm: nnx.Param
    k_norm: nnx.Param

    def __init__(self, spec: ModelSpec, layer: LayerType):
        self.spec, self.layer = spec, layer
        declare(self, block_weights(spec, layer))

    def __call__(
        self,
        x_BTD: jax.Array,
        rotation: Rotation | None,
        mixing: Mixing,
        cache: Any,
        recorded_Nk: jax.Array | None = None,
    ) -> tuple[jax.Array, Any, Any]:
        """Returns the layer's output, its new cache, and what `mixing.watch` gives.

        Args:
            x_BTD: residual stream.
            rotation: places queries and keys at their positions; None: they have none.
            mixing: attention, and products of tokens and experts.
            cache: this layer's cache, passed to `mixing.attend` or `mixing.recur`.
            recorded_Nk: choices of experts to replay, see `experts.route`.
        """
        B, T, D = x_BTD.shape
        # flat rows: on CPU the weights' gradients are several times faster than with [B, T]
        x_ND = x_BTD.reshape(-1, D)
        h_ND = self._norm(self.attn_norm, x_ND) if self.spec.pre_norms else x_ND
        if self.layer.delta:
            mixed_ND, cache = self._delta_net(self.layer.delta, h_ND, (B, T), mixing.recur, cache)
        else:
            mixed_ND, cache = self._attention(h_ND, (B, T), rotation, mixing.attend, cache)
        if self.spec.post_norms:
            mixed_ND = self._norm(self.attn_post_norm, mixed_ND)
        x_ND = x_ND + self._scaled(mixed_ND)
        out_ND, watched = self._mlp(x_ND, mixing, recorded_Nk)
        return (x_ND + self._scaled(out_ND)).reshape(B, T, D), cache, watched

    def _scaled(self, x_ND: jax.Array) -> jax.Array:
        scale = self.spec.residual_scale
        return x_ND if scale == 1 else x_ND * jnp.asarray(scale, x_ND.dtype)

    @jax.named_scope("attention")
    def _attention(
        self,
        h_ND: jax.Array,
        shape: tuple[int, int],
        rotation: Rotation | None,
        attend: Attend,
        cache: Any,
    ) -> tuple[jax.Array, Any]:
        """Returns the attention of the normalized residual stream, and the new cache."""
        (B, T), C, dtype = shape, self.spec.head_dim, h_ND.dtype
        heads = {"q": self.spec.heads, "k": self.spec.kv_heads, "v": self.spec.kv_heads}
        q, k, v = (self._project(name, h_ND).reshape(B * T, n, -1) for name, n in heads.items())
        q, gate = (q[..., :C], q[..., C:]) if self.spec.attn_gate else (q, None)
        if self.spec.qk_norm:
            q, k = self._qk_norm(self.q_norm, q), self._qk_norm(self.k_norm, k)
        q, k, v = (x.reshape(B, T, *x.shape[1:]) for x in (q, k, v))
        q, k = self._placed(q, rotation, queries=True), self._placed(k, rotation)
        sinks = self.sinks[...] if self.spec.sinks else None
        attended, cache = attend(self.layer, Heads(q, k, v, sinks), cache)
        attended = attended.astype(dtype).reshape(B * T, -1)
        if gate is not None:
            attended = attended * jax.nn.sigmoid(gate.reshape(B * T, -1))
        return self._project("o", attended), cache

    @jax.named_scope("delta_net")
    def _delta_net(
        self, delta: DeltaNet, h_ND: jax.Array, shape: tuple[int, int], recur: Recur, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Returns the Gated DeltaNet of the normalized residual stream, and the new cache."""
        q, k, v, gate = (
            self._project(f"delta_{name}", h_ND).reshape(*shape, -1, channels)
            for name, channels in (
                ("q", delta.key_dim),
                ("k", delta.key_dim),
                ("v", delta.value_dim),
                ("gate", delta.value_dim),
            )
        )
        write, step = (
            self._project(f"delta_{name}", h_ND).astype(jnp.float32).reshape(*shape, -1)
            for name in ("write", "step")
        )
        a_V, bias_V = (w[...].astype(jnp.float32) for w in (self.a_log, self.step_bias))
        step = jax.nn.softplus(step + over_rows(bias_V, step))
        convs = (w[...][:, :, 0] for w in (self.conv_q, self.conv_k, self.conv_v))
        new = delta_net.Inputs(
            q, k, v, -over_rows(jnp.exp(a_V), step) * step, jax.nn.sigmoid(write), *convs
        )
        out, cache = recur(delta, new, cache)
        out = normalized(out, self.spec.norm_eps) * over_rows(self.delta_norm[...], out)
        out = out * jax.nn.silu(gate.astype(jnp.float32))
        return self._project("delta_o", out.astype(h_ND.dtype).reshape(len(h_ND), -1)), cache

    def _placed(
        self, x_BTHC: jax.Array, rotation: Rotation | None, queries: bool = False
    ) -> jax.Array:
        """Returns queries or keys at their positions; queries scaled, relative to the usual
        head_dim ** -0.5 of attention. It is all computed in float32.
        """
        placed = x_BTHC if rotation is None else rope.rotate(x_BTHC, rotation[0], rotation[1])
        if queries and self.spec.query_scale:
            scale = self.spec.query_scale * self.spec.head_dim**0.5
            placed = placed.astype(jnp.float32) * scale
        if queries and rotation is not None and rotation.query_scale_BT is not None:
            placed = placed * rotation.query_scale_BT[:, :, None, None]
        return placed.astype(x_BTHC.dtype)

    @jax.named_scope("mlp")
    def _mlp(
        self, x_ND: jax.Array, mixing: Mixing, recorded_Nk: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """Returns the MLP's contribution to the residual stream, and what its router did."""
        watched = None
        h = self._norm(self.mlp_norm, x_ND) if self.spec.pre_norms else x_ND
        activation = ACTIVATIONS[self.spec.activation]
        if self.layer.experts:
            weights = self._expert_weights()
            out, routed = mixing.mix_experts(
                self.layer.experts, activation, weights, h, recorded_Nk
            )
            if mixing.watch:
                watched = mixing.watch(routed, recorded_Nk)
        else:
            gated = activation(self._project("gate", h))
            out = self._project("down", gated * self._project("up", h))
        return self._norm(self.mlp_post_norm, out) if self.spec.post_norms else out, watched

    def _expert_weights(self) -> dict[str, jax.Array]:
        """Returns router and experts, with adapters added to the experts."""
        weights = {
            name: getattr(self, name)[...]
            for name in block_weights(self.spec, self.layer)
            if name.startswith(("router", "expert"))
        }
        return lora.with_adapters(self.spec.lora, weights) if self.spec.lora else weights

    def _norm(self, weight: nnx.Param, x: jax.Array) -> jax.Array:
        return rms_norm(x, weight[...], self.spec)

    def _qk_norm(self, weight: nnx.Param, x_NHC: jax.Array) -> jax.Array:
        """Normalizes queries or keys, per head or over all heads."""
        if not self.spec.qk_norm_whole:
            return self._norm(weight, x_NHC)
        flat = rms_norm(x_NHC.reshape(len(x_NHC), -1), weight[...].reshape(-1), self.spec)
        return flat.reshape(x_NHC.shape)

    def _project(self, name: str, x_NI: jax.Array) -> jax.Array:
        """Multiplies [N, inputs] by a projection, giving [N, outputs], and adds its bias and its
        low-rank adapter if there are any.
        """
        inputs = x_NI.shape[1]
        y = x_NI @ getattr(self, name)[...].reshape(inputs, -1).astype(x_NI.dtype)
        if hasattr(self, f"{name}_bias"):
            bias = getattr(self, f"{name}_bias")[...].reshape(-1)
            y = y + over_rows(bias.astype(y.dtype), y)
        adapters = self.spec.lora
        if adapters is None or name not in adapters.targets:
            return y
        a, b = getattr(self, f"{name}_lora_a")[...], getattr(self, f"{name}_lora_b")[...]
        low = x_NI @ a.reshape(inputs, -1).astype(x_NI.dtype) * (adapters.alpha / adapters.rank)
        return y + low @ b.reshape(adapters.rank, -1).astype(x_NI.dtype)


@jax.named_scope("norm")
def rms_norm(x: jax.Array, weight: jax.Array, spec: ModelSpec) -> jax.Array:
    """Returns x divided by the root of its mean square (float32), times the weight or 1 + weight,
    in x's dtype.
    """
    x32 = normalized(x, spec.norm_eps)
    weight = weight.astype(jnp.float32)
    return (x32 * over_rows(1 + weight if spec.norm_offset else weight, x)).astype(x.dtype)


def normalized(x: jax.Array, eps: float) -> jax.Array:
    """Returns x divided by the root of its mean square, float32."""
    x32 = x.astype(jnp.float32)
    return x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)


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
