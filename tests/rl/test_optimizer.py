"""The optimizer: the tree of its state, and its updates in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from p2o_jax import config
from p2o_jax.models import sharding
from p2o_jax.rl.learner import Learner
from p2o_jax.rl.optimizer import make_optimizer, make_rate
from tests.factories import single_device_mesh
from tests.rl import reference


def tree_of(state):
    return jax.tree.structure(state), [(x.shape, x.dtype) for x in jax.tree.leaves(state)]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_optimizer_state_has_one_tree_for_any_number_of_updates(schedule):
    params = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    trees = {
        str(
            tree_of(
                jax.eval_shape(
                    make_optimizer(config.OptimConfig(schedule=schedule, warmup_frac=frac), n).init,
                    params,
                )
            )
        )
        for n in range(1, 1001)
        for frac in (0.0, 0.05)
    }
    assert len(trees) == 1


def test_no_setting_that_may_change_on_resume_changes_the_tree_of_the_train_state():
    """These settings may change: the number of updates (train.epochs), the mesh, and sizes that
    affect only speed.
    """

    def tree(num_updates, mesh=None, **changes):
        cfg = reference.make_config(optim__warmup_frac=0.05, **changes)
        learner = Learner(
            reference.SPEC, mesh or single_device_mesh(), cfg, num_updates, jnp.float32, 0
        )
        return tree_of(learner.abstract_state())

    want = tree(100)
    for num_updates in (1, 29, 30, 31, 1000):
        assert tree(num_updates) == want
        assert tree(num_updates, optim__schedule="cosine") == want
    for change in (
        {"optim__micro_rows": 1},
        {"model__remat": "full"},
        {"model__logit_chunk": 7},
        {"train__epochs": 9},
    ):
        assert tree(100, **change) == want
    assert tree(100, sharding.make_mesh((1, 2, 2), jax.devices()[:4])) == want


@pytest.mark.parametrize("num_updates", [1, 10, 29])
def test_a_warm_up_of_one_update_has_the_very_updates_of_a_constant_rate(num_updates):
    cfg = config.OptimConfig(lr=3e-4, warmup_frac=0.05)
    rate = make_rate(cfg, num_updates)
    np.testing.assert_array_equal([np.float32(rate(i)) for i in range(40)], np.float32(cfg.lr))
    constant = optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.adamw(cfg.lr, cfg.b1, cfg.b2, weight_decay=cfg.weight_decay, mu_dtype=cfg.mu_dtype),
    )
    outcomes = []
    for optimizer in (constant, make_optimizer(cfg, num_updates)):
        params = jax.random.normal(jax.random.key(0), (64,))
        state, step = optimizer.init(params), jax.jit(optimizer.update)
        for i in range(5):
            updates, state = step(jax.random.normal(jax.random.key(i), (64,)), state, params)
            params = optax.apply_updates(params, updates)
        outcomes.append(np.asarray(params))
    np.testing.assert_array_equal(*outcomes)
