"""The policy: a decoder-only transformer of Flax NNX modules, used through pure functions over a
params tree.

Jitted functions take params (a nested dict of arrays), never a module. Graph definitions are
created once per spec, and the functions below merge them with the params during tracing. The
learner's params hold stacks of layers (`ModelSpec.stacks`): one `lax.scan` runs over the repeats of
the pattern. In rollout layout `blocks` is a tuple with a tree for each layer, which is unrolled.

The caller decides what attends to what: `Mixing.attend` is called once in each layer.

Named scopes mark the parts in a profile: embed, layer (attention, mlp, router, norm), lm_head,
logprobs.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from p2o_jax.models import chunked_logprobs, delta_net, experts, rope, sharding
from p2o_jax.models.attention import packed, reference
from p2o_jax.models.chunked_logprobs import PADDING_LOGIT
from p2o_jax.models.layer import Heads, Mixing, block_graph, declare, over_rows, rms_norm
from p2o_jax.models.rope import Rotation
from p2o_jax.models.spec import (
    DeltaNet,
    LayerType,
    ModelSpec,
    Rope,
    Stack,
    Weight,
    weights,
)

Params = dict[str, Any]
# what the backward pass recomputes: nothing, all, or all but matrix products
Remat = Literal["none", "full", "dots"]


class Computed(NamedTuple):
    """What the layers give: normalized last hidden states [B, T, D] in the compute dtype, each
    layer's new cache (empty without caches), and what `Mixing.watch` gives of the layers with
    experts: stacked, by the stack's key, or in rollout layout one after another.
    """

    x_BTD: jax.Array
    caches: tuple[Any, ...]
    watched: Any


class Transformer(nnx.Module):
    """Embedding and final norm. Callers apply the output head, only to the positions they need."""

    embed: nnx.Param
    final_norm: nnx.Param

    def __init__(self, spec: ModelSpec):
        self.spec = spec
        declare(self, {name: w for name, w in weights(spec).items() if isinstance(w, Weight)})


def hidden(
    spec: ModelSpec,
    params: Params,
    token_BT: Int[Array, "B T"],
    position_BT: Int[Array, "B T"],
    mixing: Mixing,
    caches: Any = None,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    recorded_BTX: Int[Array, "B T X"] | None = None,
) -> Computed:
    """Returns what the layers compute of these tokens.

    Args:
        spec: the model.
        params: its params, as stacks or in rollout layout.
        token_BT: token ids.
        position_BT: position of each token in its sequence, for rope.
        mixing: attention of a layer, and products of tokens and experts.
        caches: a cache for each layer, passed to `mixing.attend`, with params in rollout layout.
            Stacks have no caches.
        dtype: compute dtype.
        remat: what the backward pass recomputes.
        recorded_BTX: choices of experts to replay, with params as stacks, see
            `experts.choices_of_token`.
    """
    top_params = {name: params[name] for name, w in weights(spec).items() if isinstance(w, Weight)}
    top = nnx.merge(_top_graph(spec), top_params)
    rotations = {
        r: rope.rotation(r, spec.head_dim, position_BT)
        for r in dict.fromkeys(map(spec.rope_of, spec.pattern))
        if r is not None
    }
    with jax.named_scope("embed"):
        x = jnp.take(top.embed[...], token_BT, axis=0).astype(dtype)
        if spec.embed_scale != 1:
            x = x * jnp.asarray(spec.embed_scale, dtype)
    if isinstance(params.get("blocks"), tuple):
        x, caches, watched = _unrolled(spec, params["blocks"], x, rotations, mixing, caches)
    else:
        recorded = _by_stack(spec, recorded_BTX)
        x, watched = _scanned(spec, params, x, rotations, mixing, remat, recorded)
        caches = ()
    return Computed(rms_norm(x, top.final_norm[...], spec), caches, watched)


def _by_stack(spec: ModelSpec, recorded_BTX: jax.Array | None) -> dict[str, jax.Array]:
    """Returns the recorded choices of each stack that has experts, [layers, N, k]."""
    if recorded_BTX is None:
        return {}
    layers = spec.expert_layers
    recorded_NLk = recorded_BTX.reshape(-1, len(layers), recorded_BTX.shape[2] // len(layers))
    recorded_LNk = jnp.moveaxis(recorded_NLk, 1, 0)
    place = {layer: i for i, layer in enumerate(layers)}
    return {
        stack.key: recorded_LNk[np.array([place[layer] for layer in stack.layers])]
        for stack in spec.stacks
        if stack.type.experts
    }


def _scanned(
    spec: ModelSpec,
    params: Params,
    x: jax.Array,
    rotations: dict[Rope, Rotation],
    mixing: Mixing,
    remat: Remat,
    recorded: dict[str, jax.Array],
) -> tuple[jax.Array, dict[str, Any]]:
    """Returns the residual stream after all stacks: a scan over the repeats of the pattern, and the
    layers that remain. And what is watched of the routers of each stack.

    Args:
        spec: the model.
        params: stacks of layers.
        x: residual stream.
        rotations: rotation of each rope.
        mixing: attention of a layer, and products of tokens and experts.
        remat: what the backward pass recomputes.
        recorded: choices of experts to replay, of each stack that has some [layers, N, k].
    """

    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None

    def run(
        stack: Stack, x: jax.Array, block_params: Params, recorded_Nk: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        def compute(
            x: jax.Array, block_params: Params, recorded_Nk: jax.Array | None
        ) -> tuple[jax.Array, Any]:
            out, _, watched = _layer(
                spec, stack.type, block_params, x, rotations, mixing, recorded_Nk=recorded_Nk
            )
            return out, watched

        if remat != "none":
            compute = jax.checkpoint(compute, prevent_cse=not stack.repeats, policy=dots)
        return compute(x, block_params, recorded_Nk)

    repeated = [stack for stack in spec.stacks if stack.repeats]

    def repeat(
        x: jax.Array, of_layer: tuple[Params, dict[str, jax.Array]]
    ) -> tuple[jax.Array, dict[str, Any]]:
        blocks, recorded = of_layer
        watched = {}
        for stack in repeated:
            x, watched[stack.key] = run(stack, x, blocks[stack.key], recorded.get(stack.key))
        return x, watched

    watched: dict[str, Any] = {}
    if repeated:
        blocks = {stack.key: params[stack.key] for stack in repeated}
        choices = {stack.key: recorded[stack.key] for stack in repeated if stack.key in recorded}
        x, watched = jax.lax.scan(repeat, x, (blocks, choices))
    for stack in spec.stacks[len(repeated) :]:
        first = jax.tree.map(lambda w: w[0], (params[stack.key], recorded.get(stack.key)))
        x, of_stack = run(stack, x, *first)
        watched[stack.key] = jax.tree.map(lambda s: s[None], of_stack)
    return x, {key: of_stack for key, of_stack in watched.items() if of_stack is not None}


def _unrolled(
    spec: ModelSpec,
    blocks: tuple[Params, ...],
    x: jax.Array,
    rotations: dict[Rope, Rotation],
    mixing: Mixing,
    caches: Any,
) -> tuple[jax.Array, tuple[Any, ...], tuple[Any, ...]]:
    """Returns the residual stream after all layers of the rollout layout, their new caches, and
    what is watched of their routers.

    Args:
        spec: the model.
        blocks: params of each layer.
        x: residual stream.
        rotations: rotation of each rope.
        mixing: attention of a layer, and products of tokens and experts.
        caches: cache of each layer; None: no caches.
    """
    rotations = {
        r: Rotation(_computed_once(cos), _computed_once(sin), scale)
        for r, (cos, sin, scale) in rotations.items()
    }
    new, watched = [], []
    columns = zip(spec.layer_types, blocks, caches or [None] * len(blocks), strict=True)
    for layer, block_params, cache in columns:
        x, out, of_layer = _layer(spec, layer, block_params, x, rotations, mixing, cache)
        new.append(out)
        watched += [] if of_layer is None else [of_layer]
    return x, tuple(new), tuple(watched)


@jax.named_scope("layer")
def _layer(
    spec: ModelSpec,
    layer: LayerType,
    block_params: Params,
    x: jax.Array,
    rotations: dict[Rope, Rotation],
    mixing: Mixing,
    cache: Any = None,
    recorded_Nk: jax.Array | None = None,
) -> tuple[jax.Array, Any, Any]:
    own = spec.rope_of(layer)
    rotation = None if own is None else rotations[own]
    block = nnx.merge(block_graph(spec, layer), block_params)
    return block(x, rotation, mixing, cache, recorded_Nk)


def _computed_once(x: jax.Array) -> jax.Array:
    """Returns x. On CPU, XLA fuses cos and sin into all of their uses (up to 10 % of a decode
    step), but not a product.
    """
    return jnp.matmul(x, jnp.eye(x.shape[-1]), precision=jax.lax.Precision.HIGHEST)


@jax.named_scope("lm_head")
def logits(
    spec: ModelSpec, params: Params, hidden_ND: Float[Array, "*N D"]
) -> Float[Array, "*N V"]:
    """Returns the output head's scores, float32, scaled and capped. Padding of the vocabulary gets
    a score below all others.
    """
    head_VD = params["embed"] if spec.tied else params["lm_head"]
    z = jnp.einsum(
        "...D,VD->...V",
        hidden_ND,
        head_VD.astype(hidden_ND.dtype),
        preferred_element_type=jnp.float32,
    )
    z = chunked_logprobs.capped(z, spec.logit_divisor, spec.logit_cap)
    return (
        z
        if not spec.padded_vocab
        else jnp.where(over_rows(jnp.arange(spec.padded_vocab) < spec.vocab, z), z, PADDING_LOGIT)
    )


def within_segments(segment_BT: Int[Array, "B T"], mesh: Mesh | None = None) -> Mixing:
    """Returns causal attention, or Gated DeltaNet, within the segments of each row, without a
    cache.

    Args:
        segment_BT: segment number of each token, from 1; 0 is padding.
        mesh: the mesh of the rows; None: attention is dense, and everything on one device.
    """
    attention = packed.for_mesh(mesh) if mesh else reference.packed
    recurrence = delta_net.over_mesh(mesh)

    def attend(layer: LayerType, new: Heads, cache: None) -> tuple[jax.Array, None]:
        q, k, v, sinks = new
        return attention(q, k, v, segment_BT, layer.window, layer.soft_cap, sinks), cache

    def recur(delta: DeltaNet, new: delta_net.Inputs, cache: None) -> tuple[jax.Array, None]:
        return recurrence(delta, new, segment_BT), cache

    def watch(routed: experts.Routed, recorded_Nk: jax.Array | None) -> experts.Routing:
        return experts.routing(routed, segment_BT.reshape(-1) > 0, recorded_Nk)

    return Mixing(attend, recur, experts.over_mesh(mesh), watch)


class Scored(NamedTuple):
    """Log-probs and entropies of tokens, and what the routers of each stack with experts did,
    [layers, ...].
    """

    logp_BT: jax.Array
    entropy_BT: jax.Array
    routings: dict[str, experts.Routing]


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
    recorded_BTX: Int[Array, "B T X"] | None = None,
) -> Scored:
    """Returns log p(token t | earlier tokens of its segment) and the entropy of that prediction,
    float32; and what routers of experts did.

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
        recorded_BTX: choices of experts to replay, see `hidden`; None: none.
    """
    place, mixing = (token_BT, position_BT), within_segments(segment_BT, mesh)
    computed = hidden(spec, params, *place, mixing, None, dtype, remat, recorded_BTX)
    (B, T), predicts_BT = token_BT.shape, _predicts_wanted(segment_BT, wanted_BT)
    parts = sharding.num_shards(mesh) if mesh and B % sharding.num_shards(mesh) == 0 else 1
    x, target, predicts = (
        x.reshape(parts, -1, *x.shape[2:])
        for x in (computed.x_BTD, jnp.roll(token_BT, -1, axis=1), predicts_BT)
    )
    logp, entropy = chunked_logprobs.token_logps(
        x,
        params["embed"] if spec.tied else params["lm_head"],
        target,
        predicts,
        temperature,
        spec.vocab,
        chunk,
        entropy_gradient,
        mesh,
        spec.logit_divisor,
        spec.logit_cap,
    )
    return Scored(_to_own_token(logp, B, T), _to_own_token(entropy, B, T), computed.watched)


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


def unstacked(spec: ModelSpec, tree: Params, of_layer: Callable[[Any, int], Any]) -> Params:
    """Returns a tree of params in rollout layout. `of_layer(stack, i)` returns the i-th layer of a
    stack.
    """
    blocks: list[Any] = [None] * spec.layers
    for stack in spec.stacks:
        for i, layer in enumerate(stack.layers):
            blocks[layer] = of_layer(tree[stack.key], i)
    keys = {stack.key for stack in spec.stacks}
    return {name: w for name, w in tree.items() if name not in keys} | {"blocks": tuple(blocks)}


@functools.cache
def _top_graph(spec: ModelSpec) -> Any:
    return nnx.split(Transformer(spec))[0]
