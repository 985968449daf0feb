"""Sparse MLPs: routing by hand, and grouped products, split experts and their gradients against
every expert computing every token.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import experts as benchmark
from p2o_jax.models import experts, flops, lora, sharding, transformer
from p2o_jax.models.spec import (
    Experts,
    LayerType,
    LoraSpec,
    num_active_params,
    num_params,
    weights,
)
from tests.factories import make_spec

EXPERTS = Experts(count=8, chosen=3, mlp=12, bias=True)
SPEC = make_spec(pattern=(LayerType(experts=EXPERTS),))
PLAIN = make_spec(pattern=(LayerType(experts=Experts(8, 3, 12)),))


def random_layer(seed=0):
    """Returns the weights of one sparse MLP, its biases random, too."""
    keys = iter(jax.random.split(jax.random.key(seed), 20))
    table = weights(SPEC)["blocks"]
    return {
        name: jax.random.normal(next(keys), w.shape[1:]) * 0.3
        for name, w in table.items()
        if name.startswith(("router", "expert"))
    }


X_ND = jax.random.normal(jax.random.key(9), (20, SPEC.width))
RECORDED_Nk = jnp.array([[8, 1, 3]] * 5 + [[0] * 3] * 9 + [[2, 4, 5]] * 6, jnp.uint8)


def test_routing_by_hand():
    """Logits 1, 3, 2, 0: the experts 1 and 2; e^3 / (e^3 + e^2), or of the sum over all four."""
    router = jnp.array([[1.0, 3.0, 2.0, 0.0]])
    x = jnp.ones((1, 1))
    for normalized in (True, False):
        kind = Experts(4, 2, 5, normalized=normalized)
        weight, routed = experts.route(kind, {"router": router}, x)
        total = math.e**3 + math.e**2 + (0 if normalized else math.e + 1)
        np.testing.assert_array_equal(routed.expert_Nk, [[1, 2]])
        np.testing.assert_allclose(weight, [[math.e**3 / total, math.e**2 / total]], rtol=1e-6)


def test_recorded_choices_take_the_place_of_the_routers_own():
    """The same logits 1, 3, 2, 0: recorded are the experts 3 and 1 of the first token, none of the
    second.
    """
    router, x = jnp.array([[1.0, 3.0, 2.0, 0.0]]), jnp.ones((2, 1))
    recorded = jnp.array([[4, 2], [0, 0]], jnp.uint8)  # numbered from 1
    for normalized in (True, False):
        kind = Experts(4, 2, 5, normalized=normalized)
        weight, routed = experts.route(kind, {"router": router}, x, recorded)
        np.testing.assert_array_equal(routed.own_Nk, [[1, 2], [1, 2]])
        np.testing.assert_array_equal(routed.expert_Nk, [[3, 1], [1, 2]])
        over_all = math.e + math.e**3 + math.e**2 + 1
        total = 1 + math.e**3 if normalized else over_all
        np.testing.assert_allclose(weight[0], [1 / total, math.e**3 / total], rtol=1e-6)
        did = experts.routing(routed, jnp.array([True, True]), recorded)
        np.testing.assert_allclose([did.recorded, did.differ], [1, 1])
        np.testing.assert_allclose(did.chosen_E, [0, 2, 1, 1])
    own = experts.routing(routed, jnp.array([True, False]), jnp.array([[3, 2], [0, 0]]))
    np.testing.assert_allclose([own.recorded, own.differ], [1, 0])


def token_by_token(weights, x_ND, recorded=None):
    """The mixture of each token, written out in NumPy."""
    w = jax.tree.map(lambda a: np.asarray(a, np.float64), weights)
    out = np.zeros(x_ND.shape)
    for n, x in enumerate(np.asarray(x_ND, np.float64)):
        logits = x @ w["router"] + w["router_bias"]
        chosen = np.argsort(-logits)[: EXPERTS.chosen]
        chosen = chosen if recorded is None or recorded[n][0] == 0 else recorded[n] - 1
        share = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
        for p, e in zip(share, chosen, strict=True):
            gate, up = (
                x @ w[f"expert_{name}"][e] + w[f"expert_{name}_bias"][e] for name in ("gate", "up")
            )
            hidden = gate / (1 + np.exp(-gate)) * up
            out[n] += p * (hidden @ w["expert_down"][e] + w["expert_down_bias"][e])
    return out


@functools.partial(jax.jit, static_argnums=0)
def mixed(product, weights, x_ND):
    weight_Nk, routed = experts.route(EXPERTS, weights, x_ND)
    gated = functools.partial(experts.hidden, EXPERTS, jax.nn.silu)
    return product(gated, weights, x_ND, weight_Nk, routed.expert_Nk)


@pytest.mark.parametrize("product", [experts.dense, experts.grouped])
def test_products_are_those_written_out(product):
    layer = random_layer()
    np.testing.assert_allclose(
        mixed(product, layer, X_ND), token_by_token(layer, X_ND), rtol=1e-4, atol=1e-5
    )


def test_choices_are_sorted_by_expert():
    """1 0 2 1 0, of two experts: the zeros come first, then the ones, then what is beyond."""
    position, sizes = experts._by_expert(jnp.array([1, 0, 2, 1, 0]), 2)
    assert position.tolist() == [2, 0, 4, 3, 1] and sizes.tolist() == [2, 2]
    many = jax.random.randint(jax.random.key(0), (500,), 0, 8)
    position, sizes = experts._by_expert(many, 7)
    np.testing.assert_array_equal(jnp.argsort(position), jnp.argsort(many, stable=True))
    np.testing.assert_array_equal(sizes, jnp.bincount(many, length=8)[:7])


def test_both_products_have_the_same_gradients():
    def loss(layer, x_ND, product):
        return (mixed(product, layer, x_ND) * jnp.arange(1.0, 21)[:, None]).sum()

    a, b = (
        jax.jit(jax.grad(functools.partial(loss, product=product), argnums=(0, 1)))(
            random_layer(), X_ND
        )
        for product in (experts.dense, experts.grouped)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4), a, b)
    assert all(jnp.abs(g).max() > 0.1 for g in jax.tree.leaves(a))


def test_what_a_router_did_by_hand():
    """Logits ln 3 and 0 for two experts of which one is chosen, then 0 and ln 3, then padding: each
    is chosen once, with mean probability .5 and the entropy of (.75, .25).
    """
    kind, router = Experts(2, 1, 5), jnp.array([[math.log(3.0), 0.0], [0.0, math.log(3.0)]])
    x, real = jnp.array([[1.0, 0], [0, 1], [5, 0]]), jnp.array([True, True, False])

    def routing(x, real):
        return experts.routing(experts.route(kind, {"router": router}, x)[1], real)

    did = routing(x, real)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    np.testing.assert_allclose(did.chosen_E, [1, 1])
    np.testing.assert_allclose(did.probability_E, [1, 1], rtol=1e-6)
    np.testing.assert_allclose([did.entropy, did.tokens], [2 * entropy, 2], rtol=1e-6)
    np.testing.assert_allclose(experts.balance(did), 1.0, rtol=1e-6)
    # both choose the first: 2 (1 * .75 + 0 * .25)
    same = routing(jnp.array([[1.0, 0], [1, 0]]), real[:2])
    np.testing.assert_allclose(experts.balance(same), 1.5, rtol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def init(spec):
    return transformer.init(spec, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def scored(spec, params, segment):
    token = jnp.arange(24).reshape(2, 12)
    position = jnp.broadcast_to(jnp.arange(12), (2, 12))
    return transformer.token_logps(spec, params, token, position, segment)


def logps(spec, params):
    return scored(spec, params, jnp.ones((2, 12), jnp.int32)).logp_BT


def test_the_balance_of_layers_in_stacks_is_watched():
    """One sparse layer in two; the tokens of padding do not count."""
    spec = make_spec(layers=5, pattern=(LayerType(experts=Experts(8, 3, 12)), LayerType()))
    segment = jnp.array([[1] * 12, [1] * 7 + [0] * 5])
    routings = scored(spec, init(spec), segment).routings
    assert {key: r.chosen_E.shape for key, r in routings.items()} == {
        "blocks_0": (2, 8),
        "tail_0": (1, 8),
    }
    for routing in routings.values():
        np.testing.assert_allclose(routing.tokens, 19)
        np.testing.assert_allclose(routing.chosen_E.sum(axis=-1), 3 * 19)
    assert scored(make_spec(), init(make_spec()), segment).routings == {}


@pytest.mark.parametrize(
    ("shape", "product"),
    [
        ((1, 2, 4), "grouped"),
        ((2, 1, 2), "dense"),
        pytest.param((1, 2, 4), "dense", marks=pytest.mark.slow),
        pytest.param((2, 1, 2), "grouped", marks=pytest.mark.slow),
    ],
)
def test_split_experts_give_the_same_numbers_and_gradients(shape, product, monkeypatch):
    """Each device of the tensor axis has two experts or four. Of some tokens, the choice is
    replayed.
    """
    monkeypatch.setattr(experts, "dense", getattr(experts, product))
    mesh = sharding.make_mesh(shape, jax.devices()[: math.prod(shape)])

    def loss(layer, x_ND, mix):
        out, routed = mix(EXPERTS, jax.nn.silu, layer, x_ND, RECORDED_Nk)
        did = experts.routing(routed, jnp.arange(20) > 2, RECORDED_Nk)
        total = (out * jnp.arange(1.0, 21)[:, None]).sum() + 9 * experts.balance(did)
        return total, (out, routed, did)

    results = [
        jax.jit(jax.grad(functools.partial(loss, mix=mix), argnums=(0, 1), has_aux=True))(
            random_layer(), X_ND
        )
        for mix in (experts.mixture, experts.over_mesh(mesh))
    ]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4), *results)
    out = token_by_token(random_layer(), X_ND, np.asarray(RECORDED_Nk))
    np.testing.assert_allclose(results[1][1][0], out, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("sizes", [[5, 0, 9, 6], [0, 0, 20, 0], [3, 4, 0, 2], [0, 0, 0, 0]])
def test_gradients_of_grouped_products_against_single_products(sizes, monkeypatch):
    """Of 20 rows, those beyond the sizes do not count, whatever they hold. On TPU, megablox's
    kernel gives the gradient of the weights, here in tiles of 8 rows.
    """
    monkeypatch.setattr(experts, "_ROWS_OF_TILE", 8)
    keys = jax.random.split(jax.random.key(1), 3)
    rows, d = jax.random.normal(keys[0], (20, 24)), jax.random.normal(keys[1], (20, 16))
    weight, size = jax.random.normal(keys[2], (4, 24, 16)), jnp.array(sizes)
    expert = np.repeat(np.arange(5), [*sizes, 20 - sum(sizes)])
    want = [rows[expert == e].T @ d[expert == e] for e in range(4)]
    kernel = functools.partial(experts.tpu_weight_gradient, interpret=True)
    for gradient in (experts.weight_gradient, kernel):
        np.testing.assert_allclose(gradient(rows, d, size), want, rtol=1e-5, atol=1e-5)
    out, transposed = jax.vjp(experts.grouped_product, rows, weight, size)
    d_rows, d_weight, _ = transposed(d)
    np.testing.assert_allclose(d_weight, want, rtol=1e-5, atol=1e-5)
    for n, e in enumerate(expert[: sum(sizes)]):
        np.testing.assert_allclose(out[n], rows[n] @ weight[e], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(d_rows[n], weight[e] @ d[n], rtol=1e-5, atol=1e-5)


def test_rows_that_are_not_computed_leave_no_trace_in_gradients(monkeypatch):
    """Planted: what a product leaves beyond all sizes is not a number, in both directions. The
    experts are two of eight.
    """

    @jax.custom_vjp
    def product(rows, weight, size):
        return beyond(experts_product(rows, weight, size), size)

    def backward(saved, d):
        d_rows, d_weight, _ = jax.vjp(experts_product, *saved)[1](d)
        return beyond(d_rows, saved[2]), d_weight, None

    def beyond(x, size):
        return jnp.where(jnp.arange(len(x))[:, None] < size.sum(), x, jnp.nan)

    experts_product = experts.grouped_product
    product.defvjp(lambda *args: (product(*args), args), backward)
    layer = {name: w[2:4] if name.startswith("expert") else w for name, w in random_layer().items()}
    weight_Nk, routed = experts.route(EXPERTS, random_layer(), X_ND)
    gated = functools.partial(experts.hidden, EXPERTS, jax.nn.silu)

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(_, layer, x_ND):
        def loss(layer, x_ND):
            return experts.grouped(gated, layer, x_ND, weight_Nk, routed.expert_Nk - 2).sum()

        return jax.grad(loss, argnums=(0, 1))(layer, x_ND)

    want = gradients("clean", layer, X_ND)
    monkeypatch.setattr(experts, "grouped_product", product)
    got = gradients("planted", layer, X_ND)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), got, want)


def test_a_device_computes_no_expert_that_it_does_not_hold():
    """Choices outside of the given experts add nothing, also where rows are left uncomputed."""
    layer = {name: w[2:4] if name.startswith("expert") else w for name, w in random_layer().items()}
    weight_Nk = jnp.ones((20, 3))
    gated = functools.partial(experts.hidden, EXPERTS, jax.nn.silu)
    for product in (experts.dense, experts.grouped):
        for outside in (-1, 2, 7):
            none = product(gated, layer, X_ND, weight_Nk, jnp.full((20, 3), outside))
            assert not np.asarray(none).any()


def test_weights_are_split_over_experts_and_width():
    mesh = sharding.make_mesh((1, 2, 4))
    learner, rollout = (
        sharding.param_shardings(SPEC, mesh, rules)["blocks"]
        for rules in (sharding.LEARNER, sharding.ROLLOUT)
    )
    assert tuple(learner["expert_gate"].spec) == (None, "tensor", "fsdp", None)
    assert tuple(learner["expert_down"].spec) == (None, "tensor", None, "fsdp")
    assert tuple(rollout["expert_up"].spec) == (None, "tensor", None, None)
    odd = make_spec(pattern=(LayerType(experts=Experts(6, 2, 12)),))
    (line, *_) = sharding.problems(odd, mesh, sharding.LEARNER)
    assert "splits 6 over 4" in line
    assert [sharding.divides(odd, n) for n in (1, 2, 4)] == [True, True, False]
    assert sharding.divides(SPEC, 4) and not sharding.divides(SPEC, 8)  # four heads


def test_a_token_is_multiplied_by_its_chosen_experts_only():
    """Of 8 experts with 3 x 32 x 12 weights, 3 are chosen."""
    dense = num_params(PLAIN) - 2 * 8 * 3 * 32 * 12
    assert num_active_params(PLAIN) == dense + 2 * 3 * 3 * 32 * 12
    assert flops.forward(PLAIN, 0, 1) == 2 * num_active_params(PLAIN) + 4 * 4 * 8 * 2
    assert PLAIN.mlp_channels == 36 and make_spec().mlp_channels == 48
    assert num_active_params(make_spec()) == num_params(make_spec())


def test_adapters_of_experts_are_trained_and_merged():
    spec = dataclasses.replace(PLAIN, lora=LoraSpec(2, 4.0, ("q", "up", "down")))
    params = init(spec)
    block = params["blocks"]
    assert block["expert_up_lora_a"].shape == (2, 8, 32, 2)
    assert block["expert_down_lora_b"].shape == (2, 8, 2, 32) and "up_lora_a" not in block
    params["blocks"] = block | {
        name: jax.random.normal(jax.random.key(1), w.shape) * 0.3
        for name, w in block.items()
        if name.endswith("_lora_b")
    }
    merged = lora.merge(spec, params)
    assert merged["blocks"].keys() == weights(PLAIN)["blocks"].keys()
    adapted = logps(spec, params)
    np.testing.assert_allclose(logps(PLAIN, merged), adapted, rtol=1e-5, atol=1e-5)
    assert np.abs(logps(PLAIN, {**merged, "blocks": block_of(merged, block)}) - adapted).max() > 0.1
    trained, frozen = lora.split(spec, params)
    assert set(trained["blocks"]) == {f"{n}_lora_{p}" for n in ADAPTED for p in "ab"}
    assert not any(map(lora.is_adapter, frozen["blocks"]))


ADAPTED = ("q", "expert_up", "expert_down")


def block_of(merged, block):
    """Returns the merged blocks without what the experts' adapters added."""
    return merged["blocks"] | {name: block[name] for name in ADAPTED[1:]}


def test_the_benchmark_measures_both_ways():
    figures = benchmark.measure(4, 2, 8, tokens=4, repeats=1)
    assert set(figures) == {
        "dense", "dense_gradients", "grouped", "grouped_gradients", "grouped_over_dense",
    }  # fmt: skip
    assert all(x > 0 for x in figures.values())
