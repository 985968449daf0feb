"""Layers of several types: their stacks, the scan over repeats of the pattern, and adapters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax.models import hf_tensors, lora, sharding, transformer
from p2o_jax.models.spec import DeltaNet, Experts, LayerType, LoraSpec, Rope
from tests.factories import make_spec

FULL, LOCAL, NOPE = LayerType(), LayerType(rope=Rope(theta=50.0)), LayerType(positions=False)
# two repeats of the pattern, and one layer that remains
SPEC = make_spec(layers=5, pattern=(LOCAL, NOPE))
TOKENS = jax.random.randint(jax.random.key(1), (2, 12), 0, SPEC.vocab)


def by_layer(params, spec=SPEC):
    """Returns params in rollout layout."""
    return transformer.unstacked(spec, params, lambda stack, i: jax.tree.map(lambda w: w[i], stack))


@jax.jit(static_argnames=("spec", "remat"))
def run(spec, params, remat="none"):
    ones = jnp.ones_like(TOKENS)
    position = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    mixing = transformer.within_segments(ones)
    return transformer.hidden(spec, params, TOKENS, position, mixing, remat=remat)[0]


def random_params(spec=SPEC):
    """Random params with attention that depends on positions."""
    params = transformer.init(spec, jax.random.key(0))
    return jax.tree.map(lambda w: w * 8 if w.ndim > 2 else w, params)


def test_stacks_of_five_to_one_with_26_layers():
    local = LayerType(rope=Rope(theta=1e4))
    spec = make_spec(layers=26, pattern=(local,) * 5 + (FULL,))
    held = {stack.key: stack.layers for stack in spec.stacks}
    assert held == {f"blocks_{i}": (i, i + 6, i + 12, i + 18) for i in range(6)} | {
        "tail_0": (24,),
        "tail_1": (25,),
    }
    assert [i for i, t in enumerate(spec.layer_types) if t == FULL] == [5, 11, 17, 23]
    assert [stack.key for stack in make_spec().stacks] == ["blocks"]


def test_stacks_compute_what_single_layers_do():
    params = random_params()
    unrolled = run(SPEC, by_layer(params))
    np.testing.assert_allclose(run(SPEC, params), unrolled, atol=1e-5)
    for pattern in ((FULL, NOPE), (LOCAL, FULL), (NOPE, LOCAL)):
        other = dataclasses.replace(SPEC, pattern=pattern)
        assert np.abs(run(other, params) - unrolled).max() > 0.01


def test_recomputed_layers_have_the_same_gradients():
    params = random_params()

    def loss(params, remat):
        return (run(SPEC, params, remat) ** 2).mean()

    plain, full = (jax.grad(loss)(params, remat) for remat in ("none", "full"))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())


def test_the_program_does_not_grow_with_depth():
    def size(layers):
        spec = dataclasses.replace(SPEC, layers=layers)
        params = jax.eval_shape(lambda: transformer.init(spec, jax.random.key(0)))
        return str(jax.make_jaxpr(lambda p: run(spec, p))(params)).count("dot_general")

    assert size(61) == size(5) > 0


def test_tensors_of_a_checkpoint_are_found_in_their_stacks():
    places = {t.name: (t.path[0], *t.place) for t in hf_tensors.tensors(SPEC)}
    name = "model.layers.{}.self_attn.q_proj.weight"
    assert [places[name.format(i)] for i in range(5)] == [
        ("blocks_0", 0),
        ("blocks_1", 0),
        ("blocks_0", 1),
        ("blocks_1", 1),
        ("tail_0", 0),
    ]


@pytest.fixture(scope="module")
def adapted():
    """A spec with adapters, and params in which they matter."""
    spec = dataclasses.replace(SPEC, lora=LoraSpec(2, 4.0, ("q", "down")))
    params = random_params(spec)
    return spec, {
        key: {n: w + 0.3 if n.endswith("_lora_b") else w for n, w in value.items()}
        if isinstance(value, dict)
        else value
        for key, value in params.items()
    }


def test_adapters_of_every_stack_are_trained_and_merged(adapted):
    spec, params = adapted
    trained, frozen = lora.split(spec, params)
    assert sum(w.size for w in jax.tree.leaves(trained)) == 5 * 2 * (32 + 32 + 48 + 32)
    joined = lora.join(trained, frozen)
    assert jax.tree.all(jax.tree.map(np.array_equal, joined, params))
    merged = lora.merge(spec, params)
    np.testing.assert_allclose(
        run(dataclasses.replace(spec, lora=None), merged), run(spec, params), atol=1e-3
    )
    assert np.abs(run(SPEC, frozen) - run(spec, params)).max() > 0.01


def test_new_adapters_of_every_stack_change_nothing(adapted):
    spec, _ = adapted
    base = random_params()
    shardings = jax.tree.map(lambda w: w.sharding, transformer.init(spec, jax.random.key(0)))
    params = lora.add(spec, base, jax.random.key(2), shardings)
    np.testing.assert_array_equal(run(spec, params), run(SPEC, base))
    drawn = [params[stack.key]["q_lora_a"] for stack in spec.stacks]
    assert len({float(a[0, 0, 0]) for a in drawn}) == len(drawn)


HYBRID = make_spec(
    layers=2,
    pattern=(
        LayerType(delta=DeltaNet(2, 4, 8, 6, conv=3), experts=Experts(4, 2, 16)),
        LayerType(window=5),
    ),
)


@jax.jit(static_argnames="mesh")
def logps_and_gradients(params, token, segment, mesh=None):
    """Returns the log-probs of packed rows, and the gradients of their weighted sum."""
    same = (segment[:, :, None] == segment[:, None, :]) & jnp.tri(token.shape[1], dtype=bool)[None]
    position = same.sum(axis=2) - 1

    def loss(params):
        logp, *_ = transformer.token_logps(
            HYBRID, params, token, position, segment, mesh=mesh, remat="full", chunk=16
        )
        return (logp * jnp.cos(token)).sum(), logp

    return jax.grad(loss, has_aux=True)(params)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), a, b)


def test_experts_delta_nets_and_windows_packed_and_on_eight_devices():
    """Four rows of two sequences; the same sequences in a row each; and the first split eight
    ways.
    """
    params = transformer.init(HYBRID, jax.random.key(0))
    params = jax.tree.map(lambda w: w * 4 if w.ndim > 2 else w, params)
    token = jax.random.randint(jax.random.key(1), (4, 24), 0, HYBRID.vocab)
    segment = jnp.array([[1] * 9 + [2] * 15, [1] * 14 + [2] * 8 + [0] * 2] * 2)
    one = logps_and_gradients(params, token, segment)
    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(one[0]))
    # padding is another token than the other sequence's, so that a leak between them is seen
    inside = [(segment == s).astype(jnp.int32) for s in (1, 2)]
    alone = [logps_and_gradients(params, token * own, own) for own in inside]
    close(jax.tree.map(jnp.add, *alone), one)
    mesh = sharding.make_mesh((2, 2, 2))
    placed = jax.device_put(params, sharding.param_shardings(HYBRID, mesh, sharding.LEARNER))
    rows = jax.device_put((token, segment), sharding.batch_sharding(mesh))
    close(logps_and_gradients(placed, *rows, mesh=mesh), one)
