"""Metrics of an update by hand: means are absent where nothing was counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax import config
from p2o_jax.models import transformer
from p2o_jax.models.experts import Routing
from p2o_jax.models.spec import Experts, LayerType
from p2o_jax.report import curves
from p2o_jax.rl import objective, stats
from p2o_jax.rl.sft_learner import SftExample, SftLearner
from p2o_jax.rollout.engine import Work
from p2o_jax.tracking import metric_names
from tests.factories import make_spec, single_device_mesh

SUMS = {
    "loss": 0.5,
    "policy_loss": 0.25,
    "kl_loss": 2.0,
    "grad_norm": 3.0,
    "update_norm": 0.1,
    "param_norm": 9.0,
    "bad": 0.0,
    "tokens": 8.0,
    "approx_kl": 4.0,
    "entropy": 6.0,
    "clipped": 2.0,
    "dual_clipped": 1.0,
    "real_tokens": 30.0,
    "fresh_tokens": 4.0,
    "gap": 1.0,
    "max_gap": 0.75,
}
OF_TOKENS = {
    "train/approx_kl",
    "train/entropy",
    "train/frac_clipped",
    "train/frac_dual_clipped",
    "train/kl_loss",
}


def nothing_trained():
    zero = dict.fromkeys(
        (
            "loss",
            "policy_loss",
            "kl_loss",
            "grad_norm",
            "tokens",
            "approx_kl",
            "entropy",
            "clipped",
            "dual_clipped",
        ),
        0.0,
    )
    return stats.update_stats(
        SUMS | zero | dict.fromkeys(("real_tokens", "fresh_tokens", "gap", "max_gap"), 0.0), 0
    )


def test_an_update_by_hand():
    figures = stats.update_stats(SUMS, 40)
    assert (
        figures["train/entropy"] == 0.75
        and figures["train/approx_kl"] == 0.5
        and figures["train/kl_loss"] == 2.0
    )
    assert figures["train/frac_clipped"] == 0.25 and figures["train/frac_dual_clipped"] == 0.125
    assert figures["perf/frac_row_tokens_real"] == 0.75
    assert figures["train/logprob_gap_mean"] == 0.25 and figures["train/logprob_gap_max"] == 0.75
    assert set(figures) <= set(metric_names.METRICS)
    assert "train/kl_loss" not in stats.update_stats(
        {k: v for k, v in SUMS.items() if k != "kl_loss"}, 40
    )


def test_where_nothing_was_trained_there_is_no_mean_over_trained_tokens():
    """Loss and gradient are 0 then, but params may change (weight decay)."""
    figures = nothing_trained()
    assert figures == {
        "train/loss": 0,
        "train/policy_loss": 0,
        "train/grad_norm": 0,
        "train/update_norm": 0.1,
        "train/param_norm": 9,
        "train/bad_updates": 0,
        "train/trained_tokens": 0,
    }


def test_an_update_without_tokens_pulls_no_mean_of_its_step_towards_zero():
    step = metric_names.of_updates({}, [stats.update_stats(SUMS, 40), nothing_trained()])
    assert step["train/entropy"] == 0.75 and step["train/trained_tokens"] == 4
    assert not OF_TOKENS & set(metric_names.of_updates({}, [nothing_trained()]))


def test_a_curve_has_a_gap_where_a_row_lacks_the_metric():
    rows = [
        {"step": i, "train/bad_updates": 0.0, **({"train/entropy": 2.0} if i else {})}
        for i in range(2)
    ]
    assert curves.of_rows(rows)["policy"]["values"]["train/entropy"] == [None, 2.0]
    assert curves.not_finite(rows) == 0


def test_a_sampler_that_did_nothing_has_no_shares():
    assert Work().metrics() == {"perf/decode_steps": 0}
    figures = Work(
        busy=3,
        computed=4,
        steps=2,
        prefilled=6,
        prompt_tokens=4,
        prefill_seconds=1.0,
        decode_seconds=3.0,
        tail_seconds=2.0,
    )
    assert figures.metrics() == pytest.approx(
        {
            "perf/frac_slots_busy": 0.75,
            "perf/decode_steps": 2,
            "perf/frac_prompt_tokens_computed": 1.5,
            "perf/frac_prefill_time": 0.25,
            "perf/frac_tail_time": 0.5,
        }
    )


def test_routers_by_hand():
    """Two layers of two experts: 3 of 4 and 6 of 8 choices on the first are 1.5 even shares each,
    also where they come in two micro-batches.
    """
    parts = [
        [Routing(*map(jnp.array, ([[2.0, 0]], [[1.5, 0.5]], [1.0], [2.0], [0.0], [0.0])))] * 2,
        [
            Routing(*map(jnp.array, ([[1.0, 1]], [[1.0, 1]], [1.4], [2.0], [1.0], [0.0]))),
            Routing(*map(jnp.array, ([[4.0, 2]], [[3.0, 3]], [4.2], [6.0], [4.0], [2.0]))),
        ],
    ]
    losses, sums = zip(*(objective.routers(part, jnp.float32(0.5)) for part in parts), strict=True)
    # balances 1.5 and 1.5, then 1 and 1; half of each mean
    np.testing.assert_allclose(losses, [0.75, 0.5], rtol=1e-6)
    total = objective.with_max_load({name: a + sums[1][name] for name, a in sums[0].items()})
    assert not any("choices" in name for name in total)
    values = stats.router_stats({name: float(x) for name, x in total.items()})
    assert values == pytest.approx(
        {
            "train/router_balance": 1.25,
            "train/router_entropy": (1 + 1 + 1.4 + 4.2) / 12,
            "train/router_max_load": 1.5,
            "train/router_frac_differ": 2 / 5,
        }
    )
    assert stats.router_stats({"loss": 1.0}) == {}


def test_an_update_reports_its_routers_and_evens_them_if_asked():
    """A learner on a model with experts: the coefficient adds to the loss and to the gradient of
    routers; micro-batches count alike.
    """
    spec = make_spec(pattern=(LayerType(experts=Experts(4, 2, 16)),))
    params = transformer.init(spec, jax.random.key(0))
    examples = [
        SftExample((1, 2, 3), np.array(response)) for response in ((4, 5), (6, 7, 8), (9, 1), (2,))
    ]
    results = {}
    for coef in (0.0, 2.0):
        cfg = config.Config(
            data=config.DataConfig(max_prompt_tokens=3),
            rollout=config.RolloutConfig(
                questions=4, group_size=1, max_new_tokens=4, prompt_buckets=(8,), slots=4
            ),
            loss=config.LossConfig(router_balance_coef=coef),
            optim=config.OptimConfig(lr=1e-2, micro_rows=2, row_tokens=6, warmup_frac=0.0),
            sft=config.SftConfig(examples=4),
        )
        learner = SftLearner(spec, single_device_mesh(), cfg, 1, jnp.float32, pad_id=0)
        _, results[coef] = learner.update(learner.init(params), examples)
    without, with_it = results[0.0], results[2.0]
    assert 1 <= without["train/router_max_load"] <= 4 / 2
    assert 0 < without["train/router_entropy"] < np.log(4)
    assert with_it["train/router_balance"] == pytest.approx(without["train/router_balance"])
    added = with_it["train/loss"] - without["train/loss"]
    assert added == pytest.approx(2 * without["train/router_balance"], rel=1e-4)
    assert with_it["train/grad_norm"] != pytest.approx(without["train/grad_norm"], rel=1e-4)
    assert {"train/router_balance", "train/router_entropy", "train/router_max_load"} <= set(
        metric_names.METRICS
    )
