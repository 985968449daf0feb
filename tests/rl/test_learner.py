"""The learner against the plain reference of tests/rl/reference.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax import config
from p2o_jax.models import sharding, transformer
from p2o_jax.rl import advantages, batch
from p2o_jax.rl.learner import Learner
from p2o_jax.rl.optimizer import make_optimizer
from p2o_jax.rollout.engine import Engine
from p2o_jax.runtime import allocator, rng
from p2o_jax.types import Request, SamplingParams
from tests.factories import single_device_mesh
from tests.rl.reference import (
    GROUP,
    MAX_NEW,
    NEW,
    OLD,
    REF,
    SPEC,
    TEMPERATURE,
    check,
    expected,
    learn,
    make_config,
    make_learner,
    make_rollouts,
    padded,
    padded_logps,
    response_logps,
    reward_table,
)

VARIANTS = {
    "default": {},
    "soft mask": {"distill__clip": "soft"},
    "seq-mean-token-mean, KL, entropy": {
        "loss__aggregation": "seq-mean-token-mean",
        "loss__kl": "k3",
        "loss__kl_coef": 0.1,
        "loss__entropy_coef": 0.05,
    },
    "seq-mean-token-sum, failed templated dropped": {
        "loss__aggregation": "seq-mean-token-sum",
        "distill__drop_failed_templated": True,
    },
    "seq-mean-token-sum-norm, Dr. GRPO": {
        "loss__aggregation": "seq-mean-token-sum-norm",
        "adv__kind": "dr_grpo",
    },
    "failed templated weigh less": {"distill__failed_weight": 0.25},
    "off, failed templated weigh less": {"distill__mode": "off", "distill__failed_weight": 0.25},
    "importance": {"distill__mode": "importance"},
    "plain": {"distill__mode": "plain"},
    "off": {"distill__mode": "off"},
    "MaxRL": {"adv__kind": "maxrl"},
    "DPPO": {"loss__ratio": "dppo", "loss__clip_low": 0.005, "loss__clip_high": 0.01},
    "self-distillation": {"loss__self_distill_coef": 0.2},
}


@functools.cache
def outcome(name: str):
    """Returns the learner's outcome with rows of two or more sequences on one device."""
    return learn(make_config(**VARIANTS[name], optim__row_tokens=40))


@pytest.mark.parametrize("name", VARIANTS)
def test_an_update_is_the_reference_s(name):
    """The reference includes zero-advantage groups, which the learner skips: they affect only the
    means.
    """
    check(outcome(name), expected(make_config(**VARIANTS[name])))


def test_the_reference_distinguishes_the_variants():
    losses = [outcome(name)[0]["train/loss"] for name in VARIANTS]
    assert all(abs(a - b) > 1e-3 * abs(a) for i, a in enumerate(losses) for b in losses[:i])
    stats = outcome("default")[0]
    assert all(0.02 < stats[k] < 0.9 for k in ("train/frac_clipped", "train/frac_dual_clipped"))
    assert all(
        0.02 < stats[k] < 0.9 for k in ("distill/frac_masked_low", "distill/frac_masked_high")
    )
    assert stats["train/grad_norm"] > make_config().optim.clip_norm
    assert 0.02 < outcome("DPPO")[0]["train/frac_clipped"] < 0.9


def test_self_distillation_trains_groups_without_advantage():
    """Group 4 has no failure: its templated responses are trained by self-distillation alone."""
    rollouts = make_rollouts()[4 * GROUP : 5 * GROUP]
    learner = make_learner(make_config(**VARIANTS["self-distillation"], optim__row_tokens=40))
    examples = batch.examples(rollouts, np.zeros((1, GROUP)), learner.cfg.distill)
    scored, _ = learner.score(OLD, None, examples)
    _, stats = learner.update(learner.init(jax.tree.map(jnp.copy, NEW)), scored)
    assert stats["train/policy_loss"] == 0 and stats["train/self_distill_loss"] > 0
    assert stats["train/trained_tokens"] == sum(
        len(r.completion.token_ids) for r in rollouts if r.templated
    )


class MaskShifted(Learner):
    def _put(self, rows):
        return super()._put(rows._replace(trained=np.roll(rows.trained, -1, axis=-1)))


class EndUntrained(Learner):
    def _put(self, rows):
        ends = rows.trained & ~np.roll(rows.trained, -1, axis=-1)
        return super()._put(rows._replace(trained=rows.trained & ~ends))


class RatioOnWrongPrompt(Learner):
    def _score_on(self, params, examples, which, prompt, row_tokens):
        other = {"trained_on_ids": "sampled_on_ids", "sampled_on_ids": "trained_on_ids"}[prompt]
        return super()._score_on(
            params, examples, which, other, config.templated_row_tokens(self.cfg)
        )


class WeightsIgnored(Learner):
    def _put(self, rows):
        return super()._put(rows._replace(weight=np.ones_like(rows.weight)))


@pytest.mark.parametrize("kind", [MaskShifted, EndUntrained, RatioOnWrongPrompt, WeightsIgnored])
def test_the_reference_catches(kind):
    got = learn(make_config(optim__row_tokens=40), kind=kind)
    with pytest.raises(AssertionError):
        check(got, expected(make_config()))


def test_the_reference_catches_swapped_groups(monkeypatch):
    real = advantages.group_advantages
    monkeypatch.setattr(
        advantages, "group_advantages", lambda r, cfg: real(np.ascontiguousarray(r.T), cfg).T
    )
    got = learn(make_config(optim__row_tokens=40))
    with pytest.raises(AssertionError):
        check(got, expected(make_config()))


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__micro_rows": 2, "optim__row_tokens": 40},
        {"optim__micro_rows": 24},
        {"optim__row_tokens": 0},
        pytest.param({"optim__row_tokens": 150}, marks=pytest.mark.slow),
        {"optim__row_tokens": 40, "model__remat": "full"},
        pytest.param({"optim__row_tokens": 40, "model__remat": "dots"}, marks=pytest.mark.slow),
        pytest.param({"optim__row_tokens": 40, "model__logit_chunk": 7}, marks=pytest.mark.slow),
    ],
    ids=[
        "micro-batched",
        "whole",
        "small rows",
        "long rows",
        "remat",
        "remat all but products",
        "chunked logits",
    ],
)
def test_an_update_does_not_depend_on(changes):
    check(learn(make_config(**changes)), outcome("default"))


@pytest.mark.parametrize(
    "shape",
    [
        (2, 2, 2),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ((8, 1, 1), (1, 8, 1), (1, 4, 2))),
    ],
    ids=str,
)
def test_a_sharded_update_is_the_single_device_s(shape):
    check(learn(make_config(optim__row_tokens=40), sharding.make_mesh(shape)), outcome("default"))


@pytest.mark.slow
def test_a_sharded_update_with_kl_and_entropy_is_the_single_device_s():
    name = "seq-mean-token-mean, KL, entropy"
    check(
        learn(make_config(**VARIANTS[name], optim__row_tokens=40), sharding.make_mesh((2, 2, 2))),
        outcome(name),
    )


def test_chunked_log_probs_are_the_dense_ones():
    """Values, entropies and gradients of token_logps, with chunks that do not divide the tokens."""
    token_NT, length_N, response_NT = padded(
        [r.plain_ids for r in make_rollouts()], [r.completion.token_ids for r in make_rollouts()]
    )
    T = token_NT.shape[1]
    position = jnp.broadcast_to(jnp.arange(T)[None], token_NT.shape)
    segment = (jnp.arange(T)[None] < length_N[:, None]).astype(jnp.int32)
    weight = (
        np.random.default_rng(0).normal(size=response_NT.shape).astype(np.float32) * response_NT
    )

    def chunked(params):
        logp, entropy, _ = transformer.token_logps(
            SPEC, params, token_NT, position, segment, TEMPERATURE, chunk=7
        )
        return jnp.sum(weight * (logp + 0.3 * entropy)), (logp, entropy)

    def dense(params):
        logp, entropy = padded_logps(params, token_NT, length_N, TEMPERATURE)
        return jnp.sum(weight * (logp + 0.3 * entropy)), (logp, entropy)

    (_, got), got_gradient = jax.jit(jax.value_and_grad(chunked, has_aux=True))(NEW)
    (_, want), want_gradient = jax.jit(jax.value_and_grad(dense, has_aux=True))(NEW)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(
            np.asarray(a)[response_NT], np.asarray(b)[response_NT], rtol=1e-5, atol=1e-5
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
        got_gradient,
        want_gradient,
    )


def test_templated_with_the_empty_template_is_plain():
    rollouts = make_rollouts(empty_template=True)
    masked = learn(make_config(optim__row_tokens=40), rollouts=rollouts)
    assert not any(k.startswith("distill/") for k in masked[0])
    check(
        masked, learn(make_config(optim__row_tokens=40, distill__mode="plain"), rollouts=rollouts)
    )
    check(masked, expected(make_config(), rollouts))


def test_what_sampling_has_freed_goes_back_before_the_updates(monkeypatch):
    calls = []
    monkeypatch.setattr(allocator, "give_back", calls.append)
    learner = make_learner(make_config(optim__row_tokens=40))
    learner.score(OLD, None, [])
    assert calls == ["cpu"]


def test_scores_are_log_probs_on_the_right_prompts():
    """Old log-probs on x, rho of x against T(x, z), and the share of masked tokens."""
    cfg = make_config(optim__row_tokens=40)
    rollouts = make_rollouts()
    learner = make_learner(cfg)
    examples = batch.examples(
        rollouts, advantages.group_advantages(reward_table(rollouts), cfg.adv), cfg.distill
    )
    scored, stats = learner.score(OLD, None, examples)
    responses = [r.completion.token_ids for r in rollouts]
    on_x = response_logps(OLD, [r.plain_ids for r in rollouts], responses)
    on_Tx = response_logps(OLD, [r.prompt_ids for r in rollouts], responses)
    ratios, gaps = [], []
    for e, x, Tx, r in zip(scored, on_x, on_Tx, rollouts, strict=True):
        if e.advantage == 0:
            assert e.logp_old_R.size == 0
            continue
        np.testing.assert_allclose(e.logp_old_R, x, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(e.logp_ref_R, e.logp_old_R)
        gaps.append(np.abs(Tx - r.completion.logp_R))
        if r.templated:
            ratios.append(np.exp(x - Tx))
    ratio, gap = np.concatenate(ratios), np.concatenate(gaps)
    assert stats["distill/frac_masked_low"] == pytest.approx((ratio < 0.5).mean())
    assert stats["distill/frac_masked_high"] == pytest.approx((ratio > 1.8).mean())
    assert stats["distill/ratio_p50"] == pytest.approx(np.median(ratio), rel=1e-4)
    kept = ((ratio >= 0.5) & (ratio <= 1.8)).mean()
    assert stats["distill/effective_sample_frac"] == pytest.approx(kept)
    assert stats["distill/frac_templated_tokens"] == pytest.approx(ratio.size / gap.size)
    assert stats["train/logprob_gap_mean"] == pytest.approx(gap.mean(), rel=1e-4)
    assert stats["train/logprob_gap_max"] == pytest.approx(gap.max(), rel=1e-4)


def test_reference_log_probs_are_the_reference_s():
    cfg = make_config(optim__row_tokens=40, loss__kl="k3")
    examples = batch.examples(
        make_rollouts(),
        advantages.group_advantages(reward_table(make_rollouts()), cfg.adv),
        cfg.distill,
    )
    scored, _ = make_learner(cfg).score(OLD, REF, examples)
    want = response_logps(
        REF,
        [r.plain_ids for r in make_rollouts()],
        [r.completion.token_ids for r in make_rollouts()],
    )
    # with a KL term zero-advantage examples count, too
    for e, logp in zip(scored, want, strict=True):
        np.testing.assert_allclose(e.logp_ref_R, logp, rtol=1e-4, atol=1e-5)


def test_updates_of_any_size_compile_once_and_an_empty_one_changes_nothing():
    cfg = make_config(optim__row_tokens=20, optim__weight_decay=0.0)
    learner = make_learner(cfg)
    examples = batch.examples(
        make_rollouts(),
        advantages.group_advantages(reward_table(make_rollouts()), cfg.adv),
        cfg.distill,
    )
    state = learner.init(jax.tree.map(jnp.copy, NEW))
    for size in (len(examples), 13, 1, len(examples)):
        scored, _ = learner.score(state.params, None, examples[:size])
        state, stats = learner.update(state, scored)
        assert stats["train/trained_tokens"] == sum(
            len(e.response_ids) for e in scored if e.advantage != 0
        )
    before = jax.tree.map(np.asarray, state.params)
    fresh = learner.init(jax.tree.map(jnp.asarray, before))
    without = [e for e in examples if e.advantage == 0]
    scored, stats = learner.score(fresh.params, None, without)
    assert stats == {}
    fresh, stats = learner.update(fresh, scored)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, fresh.params), before)
    assert (
        stats["train/grad_norm"] == 0
        and stats["train/loss"] == 0
        and np.all(np.isfinite(list(stats.values())))
    )
    assert learner._update._cache_size() == 1
    assert learner._score._cache_size() == 2  # plain rows and templated ones


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    cfg = make_config(optim__row_tokens=40)
    learner = make_learner(cfg)
    examples = batch.examples(
        make_rollouts(),
        advantages.group_advantages(reward_table(make_rollouts()), cfg.adv),
        cfg.distill,
    )
    scored, _ = learner.score(NEW, None, examples)
    broken = [
        dataclasses.replace(e, advantage=float("nan")) if i == 0 else e
        for i, e in enumerate(scored)
    ]
    state, stats = learner.update(learner.init(jax.tree.map(jnp.copy, NEW)), broken)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.tree.map(np.asarray, state.params),
        jax.tree.map(np.asarray, NEW),
    )
    assert stats["train/bad_updates"] == 1 and int(state.bad_updates) == 1
    state, stats = learner.update(state, scored)
    assert stats["train/bad_updates"] == 0 and int(state.bad_updates) == 1
    assert any(
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(NEW), strict=True)
    )


def test_warm_up_is_linear_and_starts_above_zero():
    optimizer = make_optimizer(
        config.OptimConfig(lr=1.0, warmup_frac=0.4, clip_norm=1e9, weight_decay=0.0), num_updates=10
    )
    state, params, seen = optimizer.init(jnp.zeros(1)), jnp.zeros(1), []
    for _ in range(6):
        updates, state = optimizer.update(jnp.ones(1), state, params)
        seen.append(-float(updates[0]))
    np.testing.assert_allclose(seen, [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-4)


def test_at_float32_sampler_and_learner_differ_by_rounding():
    """The gap between the sampler's and the learner's log-probs on the same prompts in the first
    step.
    """
    cfg = make_config(optim__row_tokens=40)
    engine = Engine(SPEC, single_device_mesh(), cfg.rollout, [MAX_NEW], [3, 4], 0, jnp.float32)
    requests = [Request(r.prompt_ids, r.prompt.name) for r in make_rollouts()]
    sampling = SamplingParams(TEMPERATURE, MAX_NEW)
    completions = engine.generate(
        engine.to_rollout_layout(OLD), requests, sampling, rng.key(0, "gap")
    )
    rollouts = [
        dataclasses.replace(r, completion=c)
        for r, c in zip(make_rollouts(), completions, strict=True)
    ]
    examples = batch.examples(
        rollouts, advantages.group_advantages(reward_table(rollouts), cfg.adv), cfg.distill
    )
    _, stats = make_learner(cfg).score(OLD, None, examples)
    assert 0 < stats["train/logprob_gap_mean"] <= stats["train/logprob_gap_max"] < 1e-4
