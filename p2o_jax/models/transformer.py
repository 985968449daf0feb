"""The policy: a decoder-only transformer as Flax NNX modules, used through plain functions over a
params tree.

Every jit boundary takes params (a nested dict of arrays), never a module: `graphdef(spec)` is made
once, and the functions below merge it with the params while they trace. Stacked blocks (arrays with
a leading layer axis) run under one `lax.scan`; a tuple of per-layer trees, as the sampler holds
them, is unrolled.

What attends to what is the caller's business: `attend(q, k, v, cache) -> (output, new cache)` is
called once in each layer.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from p2o_jax.models import chunked_logprobs, rope, sharding
from p2o_jax.models.attention import packed, reference
from p2o_jax.models.chunked_logprobs import PADDING_LOGIT
from p2o_jax.models.spec import ModelSpec, Weight, Weights, block_weights, weights

Params = dict[str, Any]
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
# what the backward pass makes again of a layer: nothing, all, all but its matrix products
Remat = Literal["none", "full", "dots"]


class Block(nnx.Module):
    """One layer: attention and SwiGLU, each behind an RMSNorm and added to the stream. Its
    weights are `spec.block_weights`.
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

    def __init__(self, spec: ModelSpec):
        self.spec = spec
        _declare(self, block_weights(spec))

    def __call__(
        self, x_BTD: jax.Array, cos: jax.Array, sin: jax.Array, attend: Attend, cache: Any
    ) -> tuple[jax.Array, Any]:
        eps, dtype, (B, T, D) = self.spec.norm_eps, x_BTD.dtype, x_BTD.shape
        # flat rows: on CPU the weights' gradients are several times faster than with [B, T]
        x_ND = x_BTD.reshape(-1, D)
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
        attended, cache = attend(rope.rotate(q, cos, sin), rope.rotate(k, cos, sin), v, cache)
        x_ND = x_ND + self._project("o", attended.astype(dtype).reshape(B * T, -1))
        h = rms_norm(x_ND, self.mlp_norm[...], eps)
        gated = jax.nn.silu(self._project("gate", h)) * self._project("up", h)
        return (x_ND + self._project("down", gated)).reshape(B, T, D), cache

    def _project(self, name: str, x_NI: jax.Array) -> jax.Array:
        """x times the projection, [N, inputs] to [N, outputs], with its low-rank adapter if it
        has one.
        """
        inputs = x_NI.shape[1]
        y = x_NI @ getattr(self, name)[...].reshape(inputs, -1).astype(x_NI.dtype)
        lora = self.spec.lora
        if lora is None or name not in lora.targets:
            return y
        a, b = getattr(self, f"{name}_lora_a")[...], getattr(self, f"{name}_lora_b")[...]
        low = x_NI @ a.reshape(inputs, -1).astype(x_NI.dtype) * (lora.alpha / lora.rank)
        return y + low @ b.reshape(lora.rank, -1).astype(x_NI.dtype)


class Transformer(nnx.Module):
    """Embedding, blocks and final norm; the output head is applied by the caller, to the
    positions it needs.
    """

    embed: nnx.Param
    final_norm: nnx.Param

    def __init__(self, spec: ModelSpec):
        self.spec = spec
        _declare(self, {name: w for name, w in weights(spec).items() if isinstance(w, Weight)})


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x over the root of its mean square (float32), times the weight; in x's dtype."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * over_rows(weight.astype(jnp.float32), x)).astype(x.dtype)


def over_rows(weight: jax.Array, x: jax.Array) -> jax.Array:
    """The weight with leading axes of size 1, so that it broadcasts against x."""
    return weight.reshape((1,) * (x.ndim - weight.ndim) + weight.shape)


def hidden(
    spec: ModelSpec,
    params: Params,
    token_BT: Int[Array, "B T"],
    position_BT: Int[Array, "B T"],
    attend: Attend,
    caches: Any = None,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
) -> tuple[Float[Array, "B T D"], Any]:
    """The normalised last hidden states in compute dtype, and what `attend` returned as each
    layer's new cache.

    With stacked blocks `caches` (and what is returned) has a leading layer axis; with a tuple of
    blocks it is a tuple.
    """
    block_graph, top_graph = _graphdefs(spec)
    top = nnx.merge(top_graph, {name: w for name, w in params.items() if name != "blocks"})
    cos, sin = rope.angles(spec.rope, spec.head_dim, position_BT)

    def layer(x: jax.Array, weights_and_cache: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        block_params, cache = weights_and_cache
        return nnx.merge(block_graph, block_params)(x, cos, sin, attend, cache)

    if remat != "none":
        policy = (
            jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
        )
        layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
    x = jnp.take(top.embed[...], token_BT, axis=0).astype(dtype)
    blocks = params["blocks"]
    if isinstance(blocks, tuple):
        cos, sin = _computed_once(cos), _computed_once(sin)
        new = []
        for block_params, cache in zip(blocks, caches or [None] * len(blocks), strict=True):
            x, out = layer(x, (block_params, cache))
            new.append(out)
        caches = tuple(new)
    else:
        x, caches = jax.lax.scan(layer, x, (blocks, caches))
    return rms_norm(x, top.final_norm[...], spec.norm_eps), caches


def _computed_once(x: jax.Array) -> jax.Array:
    """x itself. XLA on CPU fuses cos and sin into all their uses, up to a tenth of a decode
    step's time, but not a product.
    """
    return jnp.matmul(x, jnp.eye(x.shape[-1]), precision=jax.lax.Precision.HIGHEST)


def logits(
    spec: ModelSpec, params: Params, hidden_ND: Float[Array, "*N D"]
) -> Float[Array, "*N V"]:
    """The output head, float32; tokens that only pad the vocabulary have a score that no other
    is below.
    """
    head_VD = params["embed"] if spec.tied else params["lm_head"]
    z = jnp.einsum(
        "...D,VD->...V",
        hidden_ND,
        head_VD.astype(hidden_ND.dtype),
        preferred_element_type=jnp.float32,
    )
    return (
        z
        if not spec.padded_vocab
        else jnp.where(over_rows(jnp.arange(spec.padded_vocab) < spec.vocab, z), z, PADDING_LOGIT)
    )


def attend_packed(
    segment_BT: Int[Array, "B T"], how: packed.Attention = reference.packed
) -> Attend:
    """Causal attention inside the segments of each row, without a cache."""
    return lambda q, k, v, cache: (how(q, k, v, segment_BT), cache)


def token_logps(
    spec: ModelSpec,
    params: Params,
    token_BT: Int[Array, "B T"],
    position_BT: Int[Array, "B T"],
    segment_BT: Int[Array, "B T"],
    temperature: float | jax.Array = 1.0,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    chunk: int = 1024,
    wanted_BT: Bool[Array, "B T"] | None = None,
    entropy_gradient: bool = True,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """log p(token t | the tokens before it in its segment) at the temperature, and the entropy of
    that prediction, float32.

    Both are 0 at a segment's first token, on padding and where not wanted; only wanted tokens cost
    anything in the output head. At most `chunk` rows of [*, V] logits exist at one time in each of
    the mesh's parts of the batch, in the backward pass too. Without a mesh: dense attention, one
    device.
    """
    how = packed.for_mesh(mesh) if mesh else reference.packed
    x_BTD, _ = hidden(
        spec,
        params,
        token_BT,
        position_BT,
        attend_packed(segment_BT, how),
        dtype=dtype,
        remat=remat,
    )
    B, T, D = x_BTD.shape
    inside = (segment_BT[:, 1:] == segment_BT[:, :-1]) & (segment_BT[:, 1:] > 0)
    if wanted_BT is not None:
        inside &= wanted_BT[:, 1:]
    predicts_BT = jnp.pad(inside, ((0, 0), (0, 1)))
    head_VD = params["embed"] if spec.tied else params["lm_head"]
    parts = sharding.num_shards(mesh) if mesh and B % sharding.num_shards(mesh) == 0 else 1
    by_part = tuple(
        x.reshape(parts, -1, *x.shape[2:])
        for x in (x_BTD, jnp.roll(token_BT, -1, axis=1), predicts_BT)
    )
    logp, entropy = chunked_logprobs.token_logps(
        by_part[0],
        head_VD,
        by_part[1],
        by_part[2],
        temperature,
        spec.vocab,
        chunk,
        entropy_gradient,
        mesh,
    )
    return _to_own_token(logp, B, T), _to_own_token(entropy, B, T)


def _to_own_token(predicted: jax.Array, B: int, T: int) -> jax.Array:
    """[B, T] of what was computed at each token's predecessor."""
    return jnp.pad(predicted.reshape(B, T)[:, :-1], ((0, 0), (1, 0)))


def segments(mask_BT: Bool[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Positions and segment ids of rows that hold one sequence each, padded on either side."""
    return jnp.maximum(jnp.cumsum(mask_BT, axis=1) - 1, 0), mask_BT.astype(jnp.int32)


def init(spec: ModelSpec, key: jax.Array, dtype: str = "float32") -> Params:
    """Random params as `weights(spec)` describes them; `dtype` is the config's model.param_dtype."""
    tree = weights(spec)
    leaves, treedef = jax.tree.flatten(tree, is_leaf=lambda w: isinstance(w, Weight))

    def draw(i: int, w: Weight) -> jax.Array:
        if w.init == "normal":
            return (jax.random.normal(jax.random.fold_in(key, i), w.shape) * w.scale).astype(
                w.dtype(dtype)
            )
        return jnp.full(w.shape, 1 if w.init == "ones" else 0, w.dtype(dtype))

    return jax.tree.unflatten(treedef, [draw(i, w) for i, w in enumerate(leaves)])


def _declare(module: nnx.Module, table: dict[str, Weight] | Weights) -> None:
    for name, w in table.items():
        assert isinstance(w, Weight)
        setattr(module, name, nnx.Param(jax.ShapeDtypeStruct(w.shape, jnp.float32)))


@functools.cache
def _graphdefs(spec: ModelSpec) -> tuple[Any, Any]:
    return nnx.split(Block(spec))[0], nnx.split(Transformer(spec))[0]
