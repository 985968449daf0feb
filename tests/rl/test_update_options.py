"""Options of the update: ratio levels, overlong responses, importance weights, memory, and values
that are not finite.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax import config
from p2o_jax.config import AdvConfig, ConfigError, DistillConfig, LossConfig
from p2o_jax.models import transformer
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rl import advantages, batch, distill, losses, stats
from p2o_jax.rl.learner import Learner
from p2o_jax.rl.optimizer import make_optimizer, make_rate
from p2o_jax.rollout.engine import Engine
from p2o_jax.runtime import rng
from p2o_jax.types import (
    Request,
    Rollout,
    SamplingParams,
)
from tests.factories import make_completion, make_rollout, single_device_mesh
from tests.rl import reference


def examples_of(cfg, rollouts=None):
    rollouts = rollouts or reference.make_rollouts()
    return batch.examples(
        rollouts, advantages.of_rollouts(rollouts, cfg), cfg.distill, cfg.loss.overlong
    )


def rollout(length: int, stopped: bool, score: float = 1.0) -> Rollout:
    completion = make_completion(np.ones(length), stopped=stopped)
    return make_rollout(completion=completion, score=score)


def test_rloo_is_against_the_mean_of_the_others():
    got = advantages.group_advantages(
        np.array([[1, 0, 0, 1], [1, 1, 1, 1]], np.float32), AdvConfig("rloo")
    )
    np.testing.assert_allclose(got, [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [0, 0, 0, 0]], atol=1e-6)


def test_overlong_penalty_by_hand():
    """Limit 10, buffer 4: 0 up to 6 tokens, then falling to -penalty at 10."""
    np.testing.assert_allclose(
        advantages.overlong_penalty(np.array([3, 6, 7, 9, 10]), 10, 4, 0.5),
        [0, 0, -0.125, -0.375, -0.5],
    )


def test_overlong_penalty_changes_rewards_and_mask_leaves_the_truncated_out():
    rollouts = [rollout(9, False), rollout(5, True), rollout(5, True), rollout(5, True)]
    cfg = reference.make_config(
        loss__overlong="penalty", loss__overlong_buffer=4, adv__kind="dr_grpo"
    )
    np.testing.assert_allclose(advantages.of_rollouts(rollouts, cfg), [[-0.75, 0.25, 0.25, 0.25]])
    cfg = reference.make_config(loss__overlong="mask")
    assert not advantages.of_rollouts(rollouts, cfg).any()
    assert [e.trained for e in examples_of(cfg, rollouts)] == [False, True, True, True]
    assert all(e.trained for e in examples_of(reference.make_config(), rollouts))


def test_sequence_ratios_are_means_inside_a_segment_with_each_token_s_own_gradient():
    new, old = (
        jnp.float32([[-1.0, -2.0, -3.0, -1.0, -5.0]]),
        jnp.float32([[-1.5, -2.0, -1.0, -2.0, 0.0]]),
    )
    segment, trained = jnp.int32([[1, 1, 2, 2, 0]]), jnp.array([[True, True, True, False, False]])
    cfg = LossConfig(ratio="sequence")
    got = losses.log_ratio(new, old, segment, trained, cfg)
    np.testing.assert_allclose(got[0, :3], [0.25, 0.25, -2.0])
    gradient = jax.grad(lambda x: losses.log_ratio(x, old, segment, trained, cfg)[0, 0])(new)
    np.testing.assert_allclose(gradient[0], [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(
        losses.log_ratio(new, old, segment, trained, LossConfig()), new - old
    )


def test_sequence_gradient_is_that_of_gspo():
    """With equal weights it equals the derivative of the mean log-ratio, summed over the sequence's
    tokens.
    """
    new, old = jnp.float32([[-1.0, -2.0, -3.0]]), jnp.float32([[-1.1, -2.0, -3.05]])
    segment, trained, cfg = (
        jnp.ones((1, 3), jnp.int32),
        jnp.ones((1, 3), bool),
        LossConfig(ratio="sequence"),
    )
    ours = jax.grad(
        lambda x: losses.policy_loss(
            x, losses.log_ratio(x, old, segment, trained, cfg), jnp.ones((1, 3)), cfg
        ).loss.sum()
    )(new)
    gspo = jax.grad(lambda x: -3 * jnp.exp(jnp.mean(x - old)))(new)
    np.testing.assert_allclose(ours, gspo, rtol=1e-5)


def test_cispo_keeps_every_token_s_gradient_with_a_clipped_weight():
    log_ratio, advantage = jnp.log(jnp.float32([1.1, 3.0, 0.1])), jnp.float32([2.0, 2.0, -1.0])
    cfg = LossConfig(ratio="cispo", clip_low=0.2, clip_high=0.28)
    gradient = jax.grad(lambda x: losses.policy_loss(x, log_ratio, advantage, cfg).loss.sum())(
        jnp.zeros(3)
    )
    np.testing.assert_allclose(gradient, [-2.2, -2.56, 0.8], rtol=1e-5)
    assert list(losses.policy_loss(jnp.zeros(3), log_ratio, advantage, cfg).clipped) == [0, 1, 1]


@pytest.mark.parametrize("ratio", ["sequence", pytest.param("cispo", marks=pytest.mark.slow)])
def test_ratio_levels_do_not_depend_on_packing(ratio):
    changes = {"loss__ratio": ratio, "loss__aggregation": "seq-mean-token-mean"}
    packed = reference.learn(reference.make_config(**changes, optim__row_tokens=40))
    reference.check(
        packed,
        reference.learn(reference.make_config(**changes, optim__row_tokens=0, optim__micro_rows=2)),
    )


def test_truncated_weights_by_hand():
    plain, templated = np.log(np.float32([0.5, 0.1, 0.9])), np.log(np.float32([0.25, 0.2, 0.1]))
    cfg = DistillConfig(mode="truncated", cap=3.0)
    weight = distill.distill_weights(plain, templated, cfg)
    np.testing.assert_allclose(weight, [2.0, 0.5, 3.0], rtol=1e-5)
    rho = [distill.density_ratio(plain, templated)]
    figures = stats.distill_stats(rho, [weight], [True], 6, cfg)
    assert figures["distill/frac_right_masked"] == 0
    assert (
        figures["distill/frac_masked_high"] == pytest.approx(1 / 3)
        and figures["distill/frac_masked_low"] == 0
    )
    assert figures["distill/frac_templated_tokens"] == 0.5
    assert figures["distill/effective_sample_frac"] == pytest.approx(5.5**2 / (3 * 13.25))


def test_rollout_weights_by_hand():
    learner, sampler = np.log(np.float32([0.5, 0.2, 0.9])), np.log(np.float32([0.25, 0.4, 0.1]))
    np.testing.assert_allclose(
        distill.importance_weights(learner, sampler, "token", 4.0), [2, 0.5, 4], rtol=1e-5
    )
    np.testing.assert_allclose(
        distill.importance_weights(learner, sampler, "sequence", 10.0), [9, 9, 9], rtol=1e-5
    )
    np.testing.assert_allclose(distill.importance_weights(learner, sampler, "none", 4.0), [1, 1, 1])


@pytest.mark.parametrize(
    ("level", "cap", "want"),
    [
        ("token_mask", 4.0, [2, 0.5, 0]),  # ratios 2, .5 and 9
        ("token_mask", 1.5, [0, 0, 0]),
        ("sequence_mask", 10.0, [9, 9, 9]),  # 2 x .5 x 9
        ("sequence_mask", 8.0, [0, 0, 0]),
    ],
)
def test_rollout_masks_by_hand(level, cap, want):
    learner, sampler = np.log(np.float32([0.5, 0.2, 0.9])), np.log(np.float32([0.25, 0.4, 0.1]))
    weight = distill.importance_weights(learner, sampler, level, cap)
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight, want, rtol=1e-5)
    figures = stats.rollout_weight_stats([weight], cap)
    assert figures["train/frac_rollout_is_masked"] == pytest.approx(np.mean(weight == 0))


def truncated(ratio, cap):
    return np.minimum(ratio, cap)


def masked(ratio, cap):
    return ratio * ((ratio >= 1 / cap) & (ratio <= cap))


@pytest.mark.parametrize(
    ("level", "cap", "weigh"), [("token", 1.5, truncated), ("token_mask", 8.0, masked)]
)
def test_rollout_weights_are_measured_on_the_prompt_sampled_on_and_multiply_the_loss_weights(
    level, cap, weigh
):
    cfg = reference.make_config(
        optim__row_tokens=40, train__rollout_is=level, train__rollout_is_cap=cap
    )
    examples = examples_of(cfg)
    scored, figures = reference.make_learner(cfg).score(
        reference.OLD, None, examples, len(examples)
    )
    plain, _ = reference.make_learner(reference.make_config(optim__row_tokens=40)).score(
        reference.OLD, None, examples
    )
    on_Tx = reference.response_logps(
        reference.OLD, [e.sampled_on_ids for e in examples], [e.response_ids for e in examples]
    )
    weights = [
        weigh(np.exp(Tx - e.logp_sampler_R), cap) for Tx, e in zip(on_Tx, examples, strict=True)
    ]
    for e, unweighted, weight in zip(scored, plain, weights, strict=True):
        assert not e.fresh
        if e.advantage != 0:
            np.testing.assert_allclose(e.weight_R, unweighted.weight_R * weight, rtol=1e-4)
    used = np.concatenate([w for w, e in zip(weights, examples, strict=True) if e.advantage != 0])
    assert figures["train/rollout_is_mean"] == pytest.approx(used.mean(), rel=1e-4)
    shares = {"capped": (used >= cap).mean(), "masked": (used == 0).mean()}
    assert {name: figures[f"train/frac_rollout_is_{name}"] for name in shares} == pytest.approx(
        shares
    )
    assert 0 < max(shares.values()) < 1


def test_the_first_update_needs_no_scores_of_its_own():
    """Its log-probs are the old ones: it equals an update with scores taken at the same params, and
    measures the gap.
    """
    cfg = reference.make_config(optim__row_tokens=40)
    learner = reference.make_learner(cfg)
    examples = examples_of(cfg)
    outcomes = []
    for first_update in (0, len(examples)):
        scored, figures = learner.score(reference.NEW, None, examples, first_update)
        state, numbers = learner.update(learner.init(jax.tree.map(jnp.copy, reference.NEW)), scored)
        outcomes.append((figures | numbers, jax.tree.map(np.asarray, state.params)))
    assert (
        sum(e.fresh for e in scored)
        == sum(e.advantage != 0 and not e.templated for e in examples)
        > 0
    )
    (whole, params), (fresh, same) = outcomes
    names = (
        "train/loss",
        "train/grad_norm",
        "train/entropy",
        "distill/frac_masked_low",
        "distill/frac_templated_tokens",
    )
    assert {k: fresh[k] for k in names} == pytest.approx(
        {k: whole[k] for k in names}, rel=1e-5, abs=1e-7
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), params, same)
    want = [
        np.abs(x - e.logp_sampler_R)
        for x, e in zip(
            reference.response_logps(
                reference.NEW,
                [e.trained_on_ids for e in examples],
                [e.response_ids for e in examples],
            ),
            examples,
            strict=True,
        )
        if e.advantage != 0 and not e.templated
    ]
    assert fresh["train/logprob_gap_mean"] == pytest.approx(np.concatenate(want).mean(), rel=1e-4)
    assert fresh["train/logprob_gap_max"] == pytest.approx(np.concatenate(want).max(), rel=1e-4)


def test_at_float32_the_gap_that_the_first_update_measures_is_rounding():
    cfg = reference.make_config(optim__row_tokens=40)
    engine = Engine(
        reference.SPEC,
        single_device_mesh(),
        cfg.rollout,
        [reference.MAX_NEW],
        [3, 4],
        0,
        jnp.float32,
    )
    requests = [Request(r.prompt_ids, r.prompt.name) for r in reference.make_rollouts()]
    sampling = SamplingParams(reference.TEMPERATURE, reference.MAX_NEW)
    completions = engine.generate(
        engine.to_rollout_layout(reference.OLD), requests, sampling, rng.key(0, "gap")
    )
    rollouts = [
        dataclasses.replace(r, completion=c)
        for r, c in zip(reference.make_rollouts(), completions, strict=True)
    ]
    examples = examples_of(cfg, rollouts)
    learner = reference.make_learner(cfg)
    scored, _ = learner.score(reference.OLD, None, examples, len(examples))
    _, numbers = learner.update(learner.init(jax.tree.map(jnp.copy, reference.OLD)), scored)
    assert 0 < numbers["train/logprob_gap_mean"] <= numbers["train/logprob_gap_max"] < 1e-4


def test_the_share_of_real_tokens_is_that_of_the_rows_computed():
    cfg = reference.make_config(optim__row_tokens=40, optim__micro_rows=8)
    learner = reference.make_learner(cfg)
    examples = [e for e in examples_of(cfg) if e.advantage != 0][:5]
    scored, _ = learner.score(reference.NEW, None, examples)
    _, numbers = learner.update(learner.init(jax.tree.map(jnp.copy, reference.NEW)), scored)
    real = sum(len(e.trained_on_ids) + len(e.response_ids) for e in examples)
    # all fit one micro-batch of 8 rows
    assert numbers["perf/frac_row_tokens_real"] == pytest.approx(real / (8 * 40))


def test_no_logits_of_all_tokens_are_held():
    """Value and gradient for a vocabulary of 60,000: temporaries are one chunk's and the head's
    gradient.
    """
    spec = ModelSpec(
        family="qwen3",
        vocab=60_000,
        width=16,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=8,
        mlp=16,
        tied=True,
    )
    params = jax.eval_shape(lambda: transformer.init(spec, jax.random.key(0)))
    token = jax.ShapeDtypeStruct((2, 512), jnp.int32)

    def temporaries(chunk: int) -> int:
        def loss(params, token):
            scored = transformer.token_logps(spec, params, token, token, token, chunk=chunk)
            return scored.logp_BT.sum() + scored.entropy_BT.sum()

        return (
            jax.jit(jax.grad(loss))
            .lower(params, token)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    all_logits = 2 * 512 * spec.vocab * 4
    assert temporaries(32) < all_logits / 8
    assert temporaries(1024) > all_logits


def bad_batch(learner, cfg):
    scored, _ = learner.score(reference.NEW, None, examples_of(cfg))
    return [
        dataclasses.replace(e, advantage=float("nan")) if i == 0 else e
        for i, e in enumerate(scored)
    ]


def test_the_first_bad_batch_is_written_and_too_many_end_the_run(tmp_path):
    cfg = reference.make_config(optim__row_tokens=40, train__max_bad_steps=2)
    path = tmp_path / "bad_batch.npz"
    learner = Learner(reference.SPEC, single_device_mesh(), cfg, 10, jnp.float32, 0, path)
    state, _ = learner.update(
        learner.init(jax.tree.map(jnp.copy, reference.NEW)), bad_batch(learner, cfg)
    )
    written, stamp = np.load(path), path.stat().st_mtime_ns
    assert np.isnan(written["advantage"]).any() and written["token"].shape[1:] == (8, 40)
    with pytest.raises(
        ConfigError, match=r"config\.train\.max_bad_steps=2: .*bad_batch\.npz; config\.optim\.lr"
    ):
        learner.update(state, bad_batch(learner, cfg))
    assert path.stat().st_mtime_ns == stamp


def test_cosine_falls_to_zero_after_the_warm_up():
    rate = make_rate(config.OptimConfig(lr=2.0, schedule="cosine", warmup_frac=0.2), 10)
    assert callable(rate)
    np.testing.assert_allclose([rate(i) for i in (0, 1, 5, 9)], [1.0, 2.0, 1.0, 0.0], atol=1e-6)


def test_the_first_moment_can_be_bfloat16():
    optimizer = make_optimizer(config.OptimConfig(mu_dtype="bfloat16"), 10)
    state = optimizer.init({"w": jnp.ones(3)})
    _, state = optimizer.update({"w": jnp.ones(3)}, state, {"w": jnp.ones(3)})
    adam = next(
        s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")
    )
    assert adam.mu["w"].dtype == jnp.bfloat16 and adam.nu["w"].dtype == jnp.float32
