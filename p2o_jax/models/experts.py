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
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from p2o_jax.models.sharding import BATCH_AXES, num_shards
from p2o_jax.models.spec import Experts

Activation = Callable[[jax.Array], jax.Array]
Weights = dict[str, jax.Array]  # those of `spec.block_weights` that belong to the experts
# (experts, activation, weights, tokens) -> their output
Mixture = Callable[[Experts, Activation, Weights, Any], jax.Array]


@jax.named_scope("router")
def route(
    experts: Experts, weights: Weights, x_ND: Float[Array, "N D"]
) -> tuple[Float[Array, "N k"], Int[Array, "N k"]]:
    """Returns the weight of each chosen expert, float32, and its number."""
    logits = _router_logits(experts, weights, x_ND)
    if experts.normalized:  # a softmax over the chosen ones
        chosen, expert = lax.top_k(logits, experts.chosen)
        return jax.nn.softmax(chosen, axis=-1), expert
    weight, expert = lax.top_k(jax.nn.softmax(logits, axis=-1), experts.chosen)
    return weight, expert


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


def routing(
    experts: Experts, weights: Weights, x_ND: Float[Array, "N D"], real_N: Bool[Array, "N"]
) -> Routing:
    """Returns what the router does with these tokens, of which some are padding."""
    logits = _router_logits(experts, weights, x_ND)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p, real_N1 = jnp.exp(log_p), real_N.astype(jnp.float32)[:, None]
    _, expert_Nk = lax.top_k(logits, experts.chosen)
    counted_Nk = jnp.broadcast_to(real_N1, expert_Nk.shape)
    chosen_E = jnp.zeros(experts.count).at[expert_Nk].add(counted_Nk)
    entropy = -(p * log_p * real_N1).sum()
    return Routing(chosen_E, (p * real_N1).sum(axis=0), entropy, real_N1.sum())


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
    experts: Experts, activation: Activation, weights: Weights, x_ND: Float[Array, "N D"]
) -> Float[Array, "N D"]:
    """Returns the weighted sum of each token's chosen experts, in x's dtype.

    Args:
        experts: sizes and kind of the experts.
        activation: of the gate.
        weights: router and experts.
        x_ND: tokens.
    """
    weight_Nk, expert_Nk = route(experts, weights, x_ND)
    return _chosen(experts, activation, weights, x_ND, weight_Nk, expert_Nk)


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
        experts: Experts, activation: Activation, weights: Weights, x_ND: jax.Array
    ) -> jax.Array:
        divides = len(x_ND) % num_shards(mesh) == 0
        return (split if divides else mixture)(experts, activation, weights, x_ND)

    return mixed


def _split(
    where: dict[str, Any],
    rows: PartitionSpec,
    experts: Experts,
    activation: Activation,
    weights: Weights,
    x_ND: jax.Array,
) -> jax.Array:
    """Returns `mixture` with the experts split over the tensor axis.

    Args:
        where: mesh or axes of the shard_map.
        rows: how the tokens are split.
        experts: sizes and kind of the experts.
        activation: of the gate.
        weights: router and experts.
        x_ND: tokens.
    """

    def local(weights: Weights, x_ND: jax.Array) -> jax.Array:
        weight_Nk, expert_Nk = route(experts, weights, x_ND)
        held = len(weights["expert_gate"])
        mine_Nk = expert_Nk - lax.axis_index("tensor") * held
        out = _chosen(experts, activation, weights, x_ND, weight_Nk, mine_Nk)
        return lax.psum(out, "tensor")

    of_expert = {
        name: PartitionSpec("tensor" if name.startswith("expert") else None) for name in weights
    }
    run = jax.shard_map(local, in_specs=(of_expert, rows), out_specs=rows, check_vma=False, **where)
    return run(weights, x_ND)


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
        y = lax.ragged_dot(rows, weights[name].astype(dtype), size_E)
        bias = weights.get(f"{name}_bias")
        return y if bias is None else y + bias.astype(dtype)[jnp.minimum(sorted_n, E - 1)]

    x_nD = x_ND[order_n // k]
    out_nD = product("expert_down", gated(product("expert_gate", x_nD), product("expert_up", x_nD)))
    weight_n1 = jnp.where(sorted_n < E, weight_Nk.reshape(-1)[order_n], 0.0)[:, None]
    # rows of experts elsewhere are not computed, and may hold anything
    weighted_nD = jnp.where(sorted_n[:, None] < E, out_nD.astype(jnp.float32) * weight_n1, 0.0)
    return weighted_nD[position_n].reshape(N, k, -1).sum(axis=1).astype(dtype)


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
