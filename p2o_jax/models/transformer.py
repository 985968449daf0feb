"""The policy: a decoder-only transformer of Flax NNX modules, used through pure functions over a
params tree.

Jitted functions take params (a nested dict of arrays), never a module. Graph definitions are
created once per spec, and the functions below merge them with the params during tracing. Stacked
blocks (arrays with a leading layer axis) run in one `lax.scan`; a tuple of per-layer trees, as in
rollout layout, is unrolled.

The caller decides what attends to what: `attend(q, k, v, cache) -> (output, new cache)` is called
once in each layer.

Named scopes mark the parts in a profile: embed, layer (attention, mlp, norm), lm_head, logprobs.
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
# what the backward pass recomputes: nothing, all, or all but matrix products
Remat = Literal["none", "full", "dots"]


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

    def __init__(self, spec: ModelSpec):
        self.spec = spec
        _declare(self, block_weights(spec))

    def __call__(
        self, x_BTD: jax.Array, cos: jax.Array, sin: jax.Array, attend: Attend, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Returns the layer's output and its new cache.

        Args:
            x_BTD: residual stream.
            cos: rope angles of the positions, [B, T, C/2].
            sin: likewise.
            attend: attention of the new queries, keys and values, given the cache.
            cache: this layer's cache, passed to `attend`.
        """
        B, T, D = x_BTD.shape
        # flat rows: on CPU the weights' gradients are several times faster than with [B, T]
        x_ND = x_BTD.reshape(-1, D)
        attended_ND, cache = self._attention(x_ND, (B, T), cos, sin, attend, cache)
        x_ND = x_ND + attended_ND
        return (x_ND + self._mlp(x_ND)).reshape(B, T, D), cache

    @jax.named_scope("attention")
    def _attention(
        self,
        x_ND: jax.Array,
        shape: tuple[int, int],
        cos: jax.Array,
        sin: jax.Array,
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
        attended, cache = attend(rope.rotate(q, cos, sin), rope.rotate(k, cos, sin), v, cache)
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


class Transformer(nnx.Module):
    """Embedding and final norm. Callers apply the output head, only to the positions they need."""

    embed: nnx.Param
    final_norm: nnx.Param

    def __init__(self, spec: ModelSpec):
        self.spec = spec
        _declare(self, {name: w for name, w in weights(spec).items() if isinstance(w, Weight)})


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
    """Returns the normalized last hidden states in the compute dtype, and each layer's new cache.

    Args:
        spec: the model.
        params: its params; blocks stacked or a tuple.
        token_BT: token ids.
        position_BT: position of each token in its sequence, for rope.
        attend: attention of a layer, see the module's docstring.
        caches: passed to `attend`: with a leading layer axis for stacked blocks, else a tuple. The
            new caches have the same form.
        dtype: compute dtype.
        remat: what the backward pass recomputes.
    """
    block_graph, top_graph = _graphdefs(spec)
    top = nnx.merge(top_graph, {name: w for name, w in params.items() if name != "blocks"})
    cos, sin = rope.angles(spec.rope, spec.head_dim, position_BT)

    def layer(x: jax.Array, weights_and_cache: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        block_params, cache = weights_and_cache
        with jax.named_scope("layer"):
            return nnx.merge(block_graph, block_params)(x, cos, sin, attend, cache)

    if remat != "none":
        policy = (
            jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
        )
        layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
    with jax.named_scope("embed"):
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
    """Returns x. On CPU, XLA fuses cos and sin into all of their uses (up to 10 % of a decode
    step), but not a product.
    """
    return jnp.matmul(x, jnp.eye(x.shape[-1]), precision=jax.lax.Precision.HIGHEST)


@jax.named_scope("lm_head")
def logits(
    spec: ModelSpec, params: Params, hidden_ND: Float[Array, "*N D"]
) -> Float[Array, "*N V"]:
    """Returns the output head's scores, float32. Padding of the vocabulary gets a score below all
    others.
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
    segment_BT: Int[Array, "B T"], attention: packed.Attention = reference.packed
) -> Attend:
    """Returns causal attention within the segments of each row, without a cache."""
    return lambda q, k, v, cache: (attention(q, k, v, segment_BT), cache)


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
    """Returns log p(token t | earlier tokens of its segment) and the entropy of that prediction,
    float32.

    Both are 0 at a segment's first token, on padding, and where not wanted. Only wanted tokens cost
    time in the output head. Without a mesh, attention is dense and everything runs on one device.

    Args:
        spec: the model.
        params: its params.
        token_BT: token ids.
        position_BT: position of each token in its segment.
        segment_BT: segment number of each token, from 1; 0 is padding.
        temperature: divides the logits.
        dtype: compute dtype.
        remat: what the backward pass recomputes.
        chunk: rows of logits [*, V] that exist at one time in each part of the batch, also in the
            backward pass.
        wanted_BT: tokens to score; None: all.
        entropy_gradient: whether the entropy has a gradient.
        mesh: the mesh of the batch.
    """
    attention = packed.for_mesh(mesh) if mesh else reference.packed
    attend = attend_packed(segment_BT, attention)
    x_BTD, _ = hidden(spec, params, token_BT, position_BT, attend, dtype=dtype, remat=remat)
    B, T, D = x_BTD.shape
    predicts_BT = _predicts_wanted(segment_BT, wanted_BT)
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


def _predicts_wanted(segment_BT: jax.Array, wanted_BT: jax.Array | None) -> jax.Array:
    """Returns the positions whose next token is in the same segment and wanted."""
    inside = (segment_BT[:, 1:] == segment_BT[:, :-1]) & (segment_BT[:, 1:] > 0)
    if wanted_BT is not None:
        inside &= wanted_BT[:, 1:]
    return jnp.pad(inside, ((0, 0), (0, 1)))


def _to_own_token(predicted: jax.Array, B: int, T: int) -> jax.Array:
    """Moves values computed at each token's predecessor to the token itself, as [B, T]."""
    return jnp.pad(predicted.reshape(B, T)[:, :-1], ((0, 0), (1, 0)))


def segments(mask_BT: Bool[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Returns positions and segment ids of rows that hold one sequence each, padded on either
    side.
    """
    return jnp.maximum(jnp.cumsum(mask_BT, axis=1) - 1, 0), mask_BT.astype(jnp.int32)


def init(spec: ModelSpec, key: jax.Array, dtype: str = "float32") -> Params:
    """Returns random params as described by `weights(spec)`. `dtype` is model.param_dtype."""
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
    """Declares a module's params with their shapes."""
    for name, w in table.items():
        assert isinstance(w, Weight)
        setattr(module, name, nnx.Param(jax.ShapeDtypeStruct(w.shape, jnp.float32)))


@functools.cache
def _graphdefs(spec: ModelSpec) -> tuple[Any, Any]:
    return nnx.split(Block(spec))[0], nnx.split(Transformer(spec))[0]
