"""Params stored in bfloat16, and adapters, which are always float32: dtypes of the state, and
stochastic rounding of updates.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from p2o_jax import config
from p2o_jax.models import lora, sharding, transformer
from p2o_jax.models.device_memory import bytes_per_device
from p2o_jax.models.spec import LoraSpec, Weight, weights
from p2o_jax.offline import export
from p2o_jax.rl import advantages, batch
from p2o_jax.rl.learner import Learner
from p2o_jax.rl.optimizer import apply_updates, make_optimizer, round_stochastically
from p2o_jax.startup import memory_report, preflight, run_directory
from p2o_jax.startup.model import Model
from p2o_jax.tracking import disk_space
from tests.factories import single_device_mesh
from tests.rl import reference

KEY = jnp.uint32([3, 4])
ADAPTED = dataclasses.replace(reference.SPEC, lora=LoraSpec(2, 4.0, ("q", "down")))
COMBINATIONS = [
    (spec, dtype) for spec in (reference.SPEC, ADAPTED) for dtype in ("float32", "bfloat16")
]
NAMES = [f"{'lora' if spec.lora else 'all'}-{dtype}" for spec, dtype in COMBINATIONS]
combinations = pytest.mark.parametrize(("spec", "dtype"), COMBINATIONS, ids=NAMES)


def make_learner(spec, dtype, mesh=None, **changes):
    cfg = reference.make_config(
        optim__row_tokens=40, optim__lr=1e-3, model__param_dtype=dtype, **changes
    )
    return Learner(spec, mesh or single_device_mesh(), cfg, 10, jnp.float32, 0)


def make_params(spec, dtype, mesh):
    """Returns params as a run creates them: the base in the params' dtype, and initialized
    adapters.
    """
    shardings = sharding.param_shardings(spec, mesh, sharding.LEARNER)
    base = jax.tree.map(lambda w: w.astype(dtype), reference.NEW)
    return lora.add(
        spec,
        jax.device_put(base, lora.split(spec, shardings)[1] or shardings),
        jax.random.key(1),
        shardings,
    )


def by_path(tree, describe, is_leaf=None):
    return {
        jax.tree_util.keystr(path): describe(x)
        for path, x in jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    }


def dtype_of(x):
    return jnp.dtype(x.dtype).name


@combinations
def test_the_initial_state_is_what_a_checkpoint_is_restored_into(spec, dtype):
    mesh = sharding.make_mesh((1, 2, 2), jax.devices()[:4])
    learner = make_learner(spec, dtype, mesh)
    state, abstract = learner.init(make_params(spec, dtype, mesh)), learner.abstract_state()
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    describe = lambda x: (x.shape, dtype_of(x), x.sharding)  # noqa: E731
    assert by_path(state, describe) == by_path(abstract, describe)
    stored = {x.dtype.name for x in jax.tree.leaves(state.params)}
    assert stored == {"float32" if spec.lora else dtype}
    moments = {x.dtype.name for x in jax.tree.leaves(state.opt_state) if x.ndim}
    assert moments == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(learner.frozen)} <= {dtype}


@combinations
def test_an_update_keeps_every_dtype(spec, dtype):
    learner = make_learner(spec, dtype)
    abstract = learner.abstract_state()
    frozen = lora.split(
        spec, sharding.abstract_params(spec, learner.mesh, sharding.LEARNER, dtype)
    )[1]
    rows = learner._pack([], 40, 1).rows
    after, _ = jax.eval_shape(learner._step.update, abstract, frozen, rows, jnp.int32(1))
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(after)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(abstract)
    ]


@combinations
def test_one_table_has_the_dtype_of_every_param(spec, dtype):
    """Initialization, export, disk space and the memory report agree with it."""
    named = by_path(weights(spec), lambda w: w.dtype(dtype), lambda w: isinstance(w, Weight))
    assert {name for name, d in named.items() if d != dtype} == {
        n for n in named if "lora" in n and dtype == "bfloat16"
    }
    for params in (
        jax.eval_shape(lambda: transformer.init(spec, jax.random.key(0), dtype)),
        export.abstract_params(spec, dtype),
        sharding.abstract_params(spec, single_device_mesh(), sharding.LEARNER, dtype),
    ):
        assert by_path(params, dtype_of) == named


def test_disk_and_memory_count_the_bytes_of_a_state(tmp_path, monkeypatch):
    """Bytes per weight: 2 plus two moments of 4 with bfloat16 params, 4 plus two of 4 with
    adapters. Gradients are float32.
    """
    for spec, per_weight in ((reference.SPEC, 10), (ADAPTED, 12)):
        learner = make_learner(spec, "bfloat16")
        state = learner.abstract_state()
        size = sum(x.size for x in jax.tree.leaves(state.params))
        held = bytes_per_device((state.params, state.opt_state))
        assert 0 <= held - per_weight * size < 64, "and counters"
        assert memory_report._in_float32(state.params) == 4 * size
        asked = []
        monkeypatch.setattr(
            disk_space,
            "problems",
            lambda workdir, cfg, state_bytes, *_: asked.append(state_bytes) or [],
        )
        model = Model(tmp_path, spec, single_device_mesh(), jnp.float32, None)
        preflight.space_problems(learner.cfg, run_directory.read(tmp_path), model, 8)
        assert asked == [per_weight * size]


def test_a_number_between_two_neighbours_goes_to_either_with_its_share():
    """bfloat16 has 7 fraction bits: the neighbour of 1 is 1 + 1/128, and 1 + 1/512 is a quarter of
    the way there.
    """
    n = 200_000
    for x, below, above, share in (
        (1 + 1 / 512, 1, 1 + 1 / 128, 0.25),
        (-3 - 3 / 256, -3, -3 - 1 / 64, 0.75),
        (2**-20, 2**-20, 2, 0),
    ):
        got = np.asarray(round_stochastically(jnp.full(n, x, jnp.float32), KEY).astype(jnp.float32))
        assert set(np.unique(got)) <= {np.float32(below), np.float32(above)}
        assert (got == np.float32(above)).mean() == pytest.approx(
            share, abs=5 * (0.1875 / n) ** 0.5
        )
    got = round_stochastically(jnp.float32([np.nan, np.inf, -np.inf, 0.0, -0.0]), KEY)
    np.testing.assert_array_equal(
        got.astype(jnp.float32), np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0])
    )


def test_draws_of_neighbours_and_of_successive_updates_do_not_hang_together():
    n, counts = 2**12, 64
    x = jnp.full((4, n), 1 + 1 / 256, jnp.float32)  # halfway between 1 and its neighbour
    keys = jnp.stack(
        [jnp.full(counts, 3, jnp.uint32), jnp.arange(counts, dtype=jnp.uint32)], axis=1
    )
    # [counts, 4, n]
    ups = np.asarray(jax.jit(jax.vmap(lambda key: round_stochastically(x, key) > 1))(keys))
    for shift, axis in ((1, 0), (2, 0), (1, 1), (1, 2), (2, 2)):
        assert (ups == np.roll(ups, shift, axis)).mean() == pytest.approx(
            0.5, abs=5 * 0.5 / ups.size**0.5
        )
    for axes in (0, (1, 2)):  # each element over the updates, and each update over the elements
        share = ups.mean(axis=axes)
        assert share.std() == pytest.approx(0.5 * (share.size / ups.size) ** 0.5, rel=0.5)
        assert np.abs(share - 0.5).max() < 6 * 0.5 * (share.size / ups.size) ** 0.5


def test_updates_at_a_rate_of_1e_6_move_bfloat16_as_far_as_float32_in_the_mean():
    """200 updates with one noisy gradient: float32 moves by about 2e-4, nearly all of which
    rounding to nearest would lose.
    """
    cfg, n = config.OptimConfig(lr=1e-6, warmup_frac=0.0), 2**16
    noise = 0.1 * jax.random.normal(jax.random.key(1), (4, n))
    start = {"w": (0.02 * jax.random.normal(jax.random.key(0), (n,))).astype(jnp.bfloat16)}
    optimizer = make_optimizer(cfg, 200)

    def run(params, add):
        def step(i, carry):
            params, state = carry
            grads = {"w": 1 + noise[i % 4]}
            updates, state = optimizer.update(grads, state, params)
            return add(params, updates, state), state

        begin = jax.tree.map(jnp.copy, params), optimizer.init(params)
        return np.asarray(
            jax.jit(lambda: jax.lax.fori_loop(0, 200, step, begin))()[0]["w"], np.float64
        )

    before = np.asarray(start["w"], np.float64)
    exact = (
        run({"w": start["w"].astype(jnp.float32)}, lambda p, u, s: optax.apply_updates(p, u))
        - before
    )
    rounded = run(start, lambda p, u, s: apply_updates(p, u, s, seed=0)) - before
    nearest = run(start, lambda p, u, s: optax.apply_updates(p, u)) - before
    assert exact.mean() == pytest.approx(-2e-4, rel=0.02)
    assert rounded.mean() == pytest.approx(exact.mean(), rel=0.01)
    by_size = np.array_split(np.argsort(np.abs(before)), 4)  # small and large weights alike
    for part in by_size:
        assert rounded[part].mean() == pytest.approx(exact[part].mean(), rel=0.03)
    assert abs(nearest[by_size[3]].mean()) < 0.05 * abs(exact.mean())


def test_float32_params_are_added_to_as_ever():
    params, updates = ({"a": {"w": jax.random.normal(jax.random.key(i), (99,))}} for i in (0, 1))
    state = make_optimizer(config.OptimConfig(), 10).init(params)
    jax.tree.map(
        np.testing.assert_array_equal,
        apply_updates(params, updates, state, 0),
        optax.apply_updates(params, updates),
    )


def test_rounding_does_not_depend_on_the_mesh_or_on_padding():
    """A mesh that pads the vocabulary adds rows to embed; the bits of the others stay the same."""
    mesh = sharding.make_mesh((2, 2, 2))
    outcomes = []
    for spec, where in (
        (reference.SPEC, single_device_mesh()),
        (dataclasses.replace(reference.SPEC, padded_vocab=56), mesh),
    ):
        params = sharding.abstract_params(spec, where, sharding.LEARNER, "bfloat16")
        state = make_optimizer(config.OptimConfig(), 10).init(
            jax.tree.map(lambda p: jnp.zeros(p.shape), params)
        )
        ones, updates = (
            jax.tree.map(
                lambda p, value=value, dtype=dtype: jnp.full(
                    p.shape, value, dtype, device=p.sharding
                ),
                params,
            )
            for value, dtype in ((1, jnp.bfloat16), (2**-8, jnp.float32))
        )
        outcomes.append(jax.jit(lambda p, u, s: apply_updates(p, u, s, 3))(ones, updates, state))
    one, many = outcomes
    many["embed"] = many["embed"][: reference.SPEC.vocab]
    jax.tree.map(
        np.testing.assert_array_equal, jax.tree.map(np.asarray, one), jax.tree.map(np.asarray, many)
    )
    ups = by_path(one, lambda x: tuple(np.asarray(x).ravel()[:32] > 1))
    assert len(set(ups.values())) == len(ups), "arrays have bits of their own"


def test_a_learner_s_updates_in_bfloat16_are_measured_resumed_and_skipped_exactly():
    """The update norm is that of the actual change; a restored state continues with the same bits;
    a skipped update leaves no trace.
    """
    learner = make_learner(reference.SPEC, "bfloat16")
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), reference.NEW)
    rollouts = reference.make_rollouts(empty_template=True)
    examples = batch.examples(
        rollouts, advantages.of_rollouts(rollouts, learner.cfg), learner.cfg.distill
    )
    scored, _ = learner.score(params, None, examples, len(examples))
    broken = [
        dataclasses.replace(e, advantage=float("nan")) if i == 0 else e
        for i, e in enumerate(scored)
    ]
    on_host = lambda tree: jax.tree.map(np.asarray, tree)  # noqa: E731
    states, stats = [on_host(learner.init(params))], []
    for _ in range(3):
        state, figures = learner.update(jax.device_put(states[-1], learner.state_shardings), scored)
        states.append(on_host(state))
        stats.append(figures)
    for before, after, figures in zip(states, states[1:], stats, strict=False):
        change = jax.tree.map(
            lambda a, b: a.astype(np.float64) - b.astype(np.float64), after.params, before.params
        )
        squares = sum((x**2).sum() for x in jax.tree.leaves(change))
        assert figures["train/update_norm"] == pytest.approx(squares**0.5, rel=1e-5)
        size = sum((x.astype(np.float64) ** 2).sum() for x in jax.tree.leaves(after.params))
        assert figures["train/param_norm"] == pytest.approx(size**0.5, rel=1e-5)
    uninterrupted = learner.init(params)
    for _ in range(3):
        uninterrupted, _ = learner.update(uninterrupted, scored)
    skipped, figures = learner.update(jax.device_put(states[2], learner.state_shardings), broken)
    assert figures["train/bad_updates"] == 1 and figures["train/update_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, on_host(skipped.params), states[2].params)
    skipped, _ = learner.update(skipped, scored)
    for other in (uninterrupted, skipped):
        jax.tree.map(
            np.testing.assert_array_equal,
            on_host((other.params, other.opt_state)),
            (states[3].params, states[3].opt_state),
        )
