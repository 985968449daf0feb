"""Sparse MLPs: a router chooses a few of many experts for each token, and grouped products compute
only those. No token is dropped.

`mixture` runs on one device, or where the compiler partitions it. `over_mesh` and `over_tensor`
split the experts over the tensor axis: each device computes the chosen experts that it holds, for
all tokens of its shard of the batch, and the results are summed. Weights stay where they are.

On CPU every expert computes every token: grouped products take longer there (docs/performance.md).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from p2o_jax.models.sharding import BATCH_AXES, num_shards
from p2o_jax.models.spec import Experts, ModelSpec

Activation = Callable[[jax.Array], jax.Array]
_ROWS_OF_TILE, _CHANNELS_OF_TILE = 512, 512  # of the kernel on TPU: about 5 MB of its memory
Weights = dict[str, jax.Array]  # those of `spec.block_weights` that belong to the experts


class Routed(NamedTuple):
    """What a router decided about some tokens: its logits, float32, the experts that it would
    choose, and those that compute the token. They differ where a choice is replayed.
    """

    logits_NE: jax.Array
    own_Nk: jax.Array
    expert_Nk: jax.Array


# (experts, activation, weights, tokens, recorded choices) -> the tokens' output, and the routing
Mixture = Callable[[Experts, Activation, Weights, Any, Any], tuple[jax.Array, Routed]]


def choices_of_token(spec: ModelSpec, recorded: bool) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of what is recorded of a token, [X]: the k chosen experts of each
    layer with experts, layer by layer, as numbers from 1; 0 stands for no choice. X is 0 if nothing
    is recorded.

    In one axis, as TPUs pad the last two.
    """
    kinds = [layer.experts for layer in spec.layer_types if layer.experts]
    most = max((kind.count for kind in kinds), default=0)
    size = sum(kind.chosen for kind in kinds) if recorded else 0
    return jax.ShapeDtypeStruct((size,), np.dtype(np.uint8 if most < 256 else np.uint16))


@jax.named_scope("router")
def route(
    experts: Experts,
    weights: Weights,
    x_ND: Float[Array, "N D"],
    recorded_Nk: Int[Array, "N k"] | None = None,
) -> tuple[Float[Array, "N k"], Routed]:
    """Returns the weight of each expert that computes a token, float32, and the routing.

    Args:
        experts: sizes and kind of the experts.
        weights: weights of the router.
        x_ND: tokens.
        recorded_Nk: experts that compute a token, numbered from 1, whatever the router would
            choose (arXiv 2510.11370); its logits decide their weights all the same. 0: the router
            chooses. None: it always does.
    """
    logits = _router_logits(experts, weights, x_ND)
    # the weights of the chosen ones: a softmax over them, or a part of that over all
    score = logits if experts.normalized else jax.nn.softmax(logits, axis=-1)
    chosen, own_Nk = lax.top_k(score, experts.chosen)
    expert_Nk = own_Nk
    if recorded_Nk is not None:
        expert_Nk = jnp.where(recorded_Nk == 0, own_Nk, recorded_Nk.astype(own_Nk.dtype) - 1)
        chosen = jnp.take_along_axis(score, expert_Nk, axis=1)
    weight_Nk = jax.nn.softmax(chosen, axis=-1) if experts.normalized else chosen
    return weight_Nk, Routed(logits, own_Nk, expert_Nk)


def _router_logits(experts: Experts, weights: Weights, x_ND: jax.Array) -> jax.Array:
    logits = jnp.matmul(
        x_ND, weights["router"].astype(x_ND.dtype), preferred_element_type=jnp.float32
    )
    if experts.bias:
        logits = logits + weights["router_bias"].astype(jnp.float32)[None]
    return logits


class Routing(NamedTuple):
    """What a router did with the real tokens of a batch: sums over them, float32."""

    chosen_E: jax.Array  # tokens that chose each expert
    probability_E: jax.Array  # of each expert, in a softmax over all
    entropy: jax.Array  # of this softmax, nats
    tokens: jax.Array
    # tokens with recorded choices, and those of them for which the router would choose others
    recorded: jax.Array
    differ: jax.Array


def routing(
    routed: Routed, real_N: Bool[Array, "N"], recorded_Nk: Int[Array, "N k"] | None = None
) -> Routing:
    """Returns what a router did with these tokens, of which some are padding."""
    log_p = jax.nn.log_softmax(routed.logits_NE, axis=-1)
    p, real_N1 = jnp.exp(log_p), real_N.astype(jnp.float32)[:, None]
    counted_Nk = jnp.broadcast_to(real_N1, routed.expert_Nk.shape)
    chosen_E = jnp.zeros(p.shape[1]).at[routed.expert_Nk].add(counted_Nk)
    entropy = -(p * log_p * real_N1).sum()
    recorded = differ = jnp.float32(0)
    if recorded_Nk is not None:
        recorded_N = real_N & (recorded_Nk[:, 0] > 0)
        among_Nk = (routed.own_Nk[:, :, None] + 1 == recorded_Nk[:, None, :]).any(axis=2)
        recorded = recorded_N.sum(dtype=jnp.float32)
        differ = (recorded_N & ~among_Nk.all(axis=1)).sum(dtype=jnp.float32)
    return Routing(chosen_E, (p * real_N1).sum(axis=0), entropy, real_N1.sum(), recorded, differ)


def balance(routing: Routing) -> Float[Array, "*L"]:
    """Returns the load-balancing loss of each layer (arXiv 2101.03961, equation 4): the number of
    experts times the sum over experts of their share of the choices times their mean probability.
    It is 1 if both are even, and its gradient is that of the probabilities.
    """
    choices = jnp.maximum(routing.chosen_E.sum(axis=-1, keepdims=True), 1.0)
    share_E = lax.stop_gradient(routing.chosen_E / choices)
    p_E = routing.probability_E / jnp.maximum(routing.tokens, 1.0)[..., None]
    return routing.chosen_E.shape[-1] * (share_E * p_E).sum(axis=-1)


def mixture(
    experts: Experts,
    activation: Activation,
    weights: Weights,
    x_ND: Float[Array, "N D"],
    recorded_Nk: Int[Array, "N k"] | None = None,
) -> tuple[Float[Array, "N D"], Routed]:
    """Returns the weighted sum of each token's chosen experts, in x's dtype, and the routing.

    Args:
        experts: sizes and kind of the experts.
        activation: of the gate.
        weights: router and experts.
        x_ND: tokens.
        recorded_Nk: choices to replay, see `route`.
    """
    weight_Nk, routed = route(experts, weights, x_ND, recorded_Nk)
    return _chosen(experts, activation, weights, x_ND, weight_Nk, routed.expert_Nk), routed


def over_tensor(mesh: Mesh) -> Mixture:
    """Returns `mixture` for use inside a shard_map over data and fsdp."""
    if mesh.shape["tensor"] == 1:
        return mixture
    return functools.partial(_split, {"axis_names": {"tensor"}}, PartitionSpec())


def over_mesh(mesh: Mesh | None) -> Mixture:
    """Returns `mixture` for rows that are split over data and fsdp.

    Grouped products sort tokens by expert; each shard sorts its own. Rows that do not divide over
    the shards are left to the compiler.
    """
    if mesh is None or mesh.size == 1:
        return mixture
    split = functools.partial(_split, {"mesh": mesh}, PartitionSpec(BATCH_AXES))

    def mixed(
        experts: Experts,
        activation: Activation,
        weights: Weights,
        x_ND: jax.Array,
        recorded_Nk: jax.Array | None = None,
    ) -> tuple[jax.Array, Routed]:
        divides = len(x_ND) % num_shards(mesh) == 0
        return (split if divides else mixture)(experts, activation, weights, x_ND, recorded_Nk)

    return mixed


def _split(
    where: dict[str, Any],
    rows: PartitionSpec,
    experts: Experts,
    activation: Activation,
    weights: Weights,
    x_ND: jax.Array,
    recorded_Nk: jax.Array | None = None,
) -> tuple[jax.Array, Routed]:
    """Returns `mixture` with the experts split over the tensor axis.

    Args:
        where: mesh or axes of the shard_map.
        rows: how the tokens are split.
        experts: sizes and kind of the experts.
        activation: of the gate.
        weights: router and experts.
        x_ND: tokens.
        recorded_Nk: choices to replay, see `route`.
    """

    def local(
        weights: Weights, x_ND: jax.Array, recorded_Nk: jax.Array | None
    ) -> tuple[jax.Array, Routed]:
        weight_Nk, routed = route(experts, weights, x_ND, recorded_Nk)
        held = len(weights["expert_gate"])
        mine_Nk = routed.expert_Nk - lax.axis_index("tensor") * held
        out = _chosen(experts, activation, weights, x_ND, weight_Nk, mine_Nk)
        return lax.psum(out, "tensor"), routed

    of_expert = {
        name: PartitionSpec("tensor" if name.startswith("expert") else None) for name in weights
    }
    run = jax.shard_map(
        local, in_specs=(of_expert, rows, rows), out_specs=rows, check_vma=False, **where
    )
    return run(weights, x_ND, recorded_Nk)


def _chosen(
    experts: Experts,
    activation: Activation,
    weights: Weights,
    x_ND: jax.Array,
    weight_Nk: jax.Array,
    expert_Nk: jax.Array,
) -> jax.Array:
    """Returns the weighted sum of the chosen experts among those whose weights are given: the
    others have numbers beyond them.

    Args:
        experts: sizes and kind of the experts.
        activation: of the gate.
        weights: weights of the experts.
        x_ND: tokens.
        weight_Nk: weight of each chosen expert.
        expert_Nk: its number among those given.
    """
    gated = functools.partial(hidden, experts, activation)
    return lax.platform_dependent(
        weights,
        x_ND,
        weight_Nk,
        expert_Nk,
        cpu=functools.partial(dense, gated),
        default=functools.partial(grouped, gated),
    )


def hidden(experts: Experts, activation: Activation, gate: jax.Array, up: jax.Array) -> jax.Array:
    """Returns the hidden layer of an expert."""
    if not experts.swiglu_limit:
        return activation(gate) * up
    limit = experts.swiglu_limit
    gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return (up + 1) * gate * jax.nn.sigmoid(experts.swiglu_alpha * gate)


def dense(
    gated: Callable[[jax.Array, jax.Array], jax.Array],
    weights: Weights,
    x_ND: jax.Array,
    weight_Nk: jax.Array,
    expert_Nk: jax.Array,
) -> jax.Array:
    """The mixture, with every expert computing every token. For the arguments see `grouped`."""
    dtype = x_ND.dtype
    E = len(weights["expert_gate"])
    # 0 for experts that were not chosen; numbers beyond E have no place
    weight_NE = (jax.nn.one_hot(expert_Nk, E) * weight_Nk[..., None]).sum(axis=1)

    def inward(name: str) -> jax.Array:
        h_ENF = jnp.einsum("ND,EDF->ENF", x_ND, weights[name].astype(dtype))
        bias = weights.get(f"{name}_bias")
        return h_ENF if bias is None else h_ENF + bias.astype(dtype)[:, None]

    h_ENF = gated(inward("expert_gate"), inward("expert_up")) * weight_NE.T[..., None].astype(dtype)
    out = jnp.einsum("ENF,EFD->ND", h_ENF, weights["expert_down"].astype(dtype))
    if "expert_down_bias" in weights:
        out = out + weight_NE.astype(dtype) @ weights["expert_down_bias"].astype(dtype)
    return out


def grouped(
    gated: Callable[[jax.Array, jax.Array], jax.Array],
    weights: Weights,
    x_ND: jax.Array,
    weight_Nk: jax.Array,
    expert_Nk: jax.Array,
) -> jax.Array:
    """The mixture, with tokens sorted by expert, so that each expert computes the tokens that chose
    it.

    Args:
        gated: returns an expert's hidden layer, from gate and up.
        weights: weights of the experts.
        x_ND: tokens.
        weight_Nk: weight of each chosen expert.
        expert_Nk: its number; those below 0 or beyond the given experts do not count.
    """
    dtype, (N, k) = x_ND.dtype, expert_Nk.shape
    E = len(weights["expert_gate"])
    expert_n = jnp.where((expert_Nk >= 0) & (expert_Nk < E), expert_Nk, E).reshape(-1)
    position_n, size_E = _by_expert(expert_n, E)
    # n: the N k choices, by expert
    order_n = jnp.zeros_like(position_n).at[position_n].set(jnp.arange(N * k))
    sorted_n = expert_n[order_n]

    def product(name: str, rows: jax.Array) -> jax.Array:
        y = grouped_product(rows, weights[name].astype(dtype), size_E)
        bias = weights.get(f"{name}_bias")
        return y if bias is None else y + computed(bias.astype(dtype)[jnp.minimum(sorted_n, E - 1)])

    def computed(x: jax.Array) -> jax.Array:
        """Returns x, and 0 for experts elsewhere, whose products and gradients may be anything."""
        return jnp.where(sorted_n[:, None] < E, x, 0)

    x_nD = computed(x_ND[order_n // k])
    out_nD = product("expert_down", gated(product("expert_gate", x_nD), product("expert_up", x_nD)))
    weight_n1 = jnp.where(sorted_n < E, weight_Nk.reshape(-1)[order_n], 0.0)[:, None]
    weighted_nD = computed(out_nD.astype(jnp.float32) * weight_n1)
    return weighted_nD[position_n].reshape(N, k, -1).sum(axis=1).astype(dtype)


@jax.custom_vjp
def grouped_product(
    rows_nI: Float[Array, "n I"], weight_EIO: Float[Array, "E I O"], size_E: Int[Array, "E"]
) -> Float[Array, "n O"]:
    """Returns rows, sorted by expert, times the weights of their expert: the first `size_E[0]` rows
    are those of expert 0, and so on. Rows beyond all sizes may come out as anything.

    XLA has a kernel for this product on TPU, but not for the gradient of the weights, for which it
    multiplies all rows for each expert. There megablox's kernel computes it.
    """
    return lax.ragged_dot(rows_nI, weight_EIO, size_E)


def _grouped_product_forward(
    rows_nI: jax.Array, weight_EIO: jax.Array, size_E: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return grouped_product(rows_nI, weight_EIO, size_E), (rows_nI, weight_EIO, size_E)


def _grouped_product_backward(
    saved: tuple[jax.Array, ...], d_nO: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    rows_nI, weight_EIO, size_E = saved
    d_rows_nI = lax.ragged_dot(d_nO, weight_EIO.swapaxes(1, 2), size_E)
    d_weight_EIO = lax.platform_dependent(
        rows_nI, d_nO, size_E, tpu=tpu_weight_gradient, default=weight_gradient
    )
    return d_rows_nI, d_weight_EIO.astype(weight_EIO.dtype), None


grouped_product.defvjp(_grouped_product_forward, _grouped_product_backward)


def weight_gradient(
    rows_nI: jax.Array, d_nO: jax.Array, size_E: jax.Array
) -> Float[Array, "E I O"]:
    """Returns the sum over the rows of each expert of the outer products of row and gradient."""
    weight_EIO = jnp.zeros((len(size_E), rows_nI.shape[1], d_nO.shape[1]), rows_nI.dtype)
    _, transposed = jax.vjp(lambda w: lax.ragged_dot(rows_nI, w, size_E), weight_EIO)
    return transposed(d_nO)[0]


def tpu_weight_gradient(
    rows_nI: jax.Array, d_nO: jax.Array, size_E: jax.Array, interpret: bool = False
) -> Float[Array, "E I O"]:
    """Returns `weight_gradient` by megablox's kernel. `interpret`: on any device, slowly."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    # the kernel takes whole tiles of rows; rows beyond all sizes do not count
    more = -len(rows_nI) % _ROWS_OF_TILE
    rows_nI, d_nO = (jnp.pad(x, ((0, more), (0, 0))) for x in (rows_nI, d_nO))
    tile = (_ROWS_OF_TILE, *(min(x.shape[1], _CHANNELS_OF_TILE) for x in (rows_nI, d_nO)))
    return tgmm(rows_nI.T, d_nO, size_E, rows_nI.dtype, tile, interpret=interpret)


def _by_expert(expert_n: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns the place of each choice when all are sorted by expert, stably, and the number of
    choices of each expert. Expert `count` stands for all others, which are last.

    By counting: TPU compilers take minutes for a sort of as many numbers.
    """
    chosen_nE = expert_n[:, None] == jnp.arange(count + 1)[None]
    before_nE = jnp.cumsum(chosen_nE, axis=0, dtype=jnp.int32)
    size_E = before_nE[-1]
    start_E = jnp.cumsum(size_E) - size_E
    rank_n = jnp.take_along_axis(before_nE, expert_n[:, None], axis=1)[:, 0] - 1
    return start_E[expert_n] + rank_n, size_E[:count]
