"""Metrics of an update by hand: means are absent where nothing was counted."""

import pytest

from p2o_jax.report import curves
from p2o_jax.rl import stats
from p2o_jax.rollout.engine import Work
from p2o_jax.tracking import metric_names

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
