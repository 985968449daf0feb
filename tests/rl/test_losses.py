"""Advantages, distillation weights, policy losses and KLs, against values of the released P²O
implementation and by hand.
"""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax.config import AdvConfig, DistillConfig, LossConfig
from p2o_jax.rl import advantages, distill, losses

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "loss_a.npz")
MASK = GOLDEN["response_mask"].astype(bool)
AGGREGATIONS = (
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)
CLIPS = ((0.2, 0.2), (0.2, 0.28))
CASES = list(itertools.product(AGGREGATIONS, CLIPS, ("none", "hard")))


def groups() -> np.ndarray:
    """Returns row numbers of the golden rollouts as [Q, G]."""
    index = GOLDEN["group_index"]
    assert len(set(np.bincount(index))) == 1, "the golden groups are of one size"
    return np.argsort(index, kind="stable").reshape(index.max() + 1, -1)


@pytest.mark.parametrize(
    ("kind", "name"), [("grpo", "advantages_norm_True"), ("dr_grpo", "advantages_norm_False")]
)
def test_advantages_are_the_golden_ones(kind, name):
    advantage_QG = advantages.group_advantages(GOLDEN["rewards"][groups()], AdvConfig(kind))
    want_NR = GOLDEN[name]
    got_NR = np.zeros_like(want_NR)
    got_NR[groups().ravel()] = advantage_QG.ravel()[:, None] * MASK[groups().ravel()]
    np.testing.assert_allclose(got_NR, want_NR, rtol=1e-6, atol=1e-6)


def test_golden_groups_without_advantage_are_those_of_one_reward():
    reward_QG = GOLDEN["rewards"][groups()]
    zero_Q = advantages.zero_advantage(advantages.group_advantages(reward_QG, AdvConfig()))
    assert list(zero_Q) == [len(set(row)) == 1 for row in reward_QG]
    assert 0 < zero_Q.sum() < len(zero_Q)


@pytest.mark.parametrize("clip", ["hard", "soft"])
@pytest.mark.parametrize(("low", "high"), [(0.99, 9.0), (0.2, 0.2)])
def test_weights_are_the_golden_ones(clip, low, high):
    cfg = DistillConfig(clip=clip, eps_low=low, eps_high=high)
    want_NR = GOLDEN[f"weights_{clip}_{low}_{high}"]
    assert len(np.unique(want_NR[MASK])) > 1
    for n in range(len(MASK)):
        got_R = np.ones(MASK.shape[1], np.float32)
        if GOLDEN["templated"][n]:
            got_R = distill.distill_weights(
                GOLDEN["old_logprobs"][n], GOLDEN["templated_logprobs"][n], cfg
            )
        assert got_R.dtype == np.float32
        np.testing.assert_allclose(got_R[MASK[n]], want_NR[n][MASK[n]], rtol=1e-6, atol=1e-6)


def golden_loss(logp_new_NR, aggregation, clip, weights):
    """Returns our loss of the golden batch, and its token losses."""
    cfg = LossConfig(clip_low=clip[0], clip_high=clip[1], dual_clip=3.0, aggregation=aggregation)
    length_N = MASK.sum(axis=1)
    scale_N1 = losses.aggregation_scale(length_N, aggregation, MASK.shape[1])[:, None]
    weight_NR = (
        np.ones(MASK.shape, np.float32) if weights == "none" else GOLDEN["weights_hard_0.99_9.0"]
    )
    log_ratio_NR = logp_new_NR - jnp.asarray(GOLDEN["old_logprobs"])
    token = losses.policy_loss(
        logp_new_NR, log_ratio_NR, jnp.asarray(GOLDEN["advantages_norm_True"]), cfg
    )
    return jnp.sum(jnp.where(MASK, token.loss * weight_NR * scale_N1, 0.0)), token


@pytest.mark.parametrize(("aggregation", "clip", "weights"), CASES)
def test_loss_gradient_and_clip_fractions_are_the_golden_ones(aggregation, clip, weights):
    name = f"{aggregation}|{clip[0]}|{clip[1]}|{weights}"
    logp_new = jnp.asarray(GOLDEN["new_logprobs"])
    (loss, token), gradient = jax.value_and_grad(
        lambda x: golden_loss(x, aggregation, clip, weights), has_aux=True
    )(logp_new)
    np.testing.assert_allclose(loss, GOLDEN[f"loss|{name}"], rtol=1e-6)
    assert np.abs(GOLDEN[f"grad|{name}"]).max() > 1e-4
    np.testing.assert_allclose(gradient, GOLDEN[f"grad|{name}"], rtol=0, atol=1e-6)
    for ours, theirs in (("clipped", "clipfrac"), ("dual_clipped", "clipfrac_dual")):
        assert float(np.mean(np.asarray(getattr(token, ours))[MASK])) == pytest.approx(
            GOLDEN[f"{theirs}|{name}"], abs=1e-6
        ), theirs
    approx_kl = np.clip(GOLDEN["old_logprobs"] - GOLDEN["new_logprobs"], -20, 20)[MASK].mean()
    assert float(approx_kl) == pytest.approx(GOLDEN[f"approx_kl|{name}"], rel=1e-5)


def test_golden_cases_distinguish_the_settings():
    """A loss that ignores the aggregation, the upper clip or the weights cannot pass."""
    values = [float(GOLDEN[f"loss|{a}|{c[0]}|{c[1]}|{w}"]) for a, c, w in CASES]
    assert all(abs(x - y) > 1e-5 * abs(x) for x, y in itertools.combinations(values, 2))
    dual = [float(GOLDEN[f"clipfrac_dual|{a}|{c[0]}|{c[1]}|{w}"]) for a, c, w in CASES]
    assert min(dual) > 0


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kls_are_the_golden_ones(kind):
    got_NR = losses.kl(
        jnp.asarray(GOLDEN["new_logprobs"]), jnp.asarray(GOLDEN["ref_logprobs"]), kind
    )
    np.testing.assert_allclose(
        np.asarray(got_NR)[MASK], GOLDEN[f"kl_{kind}"][MASK], rtol=1e-5, atol=1e-6
    )


def test_advantages_by_hand():
    reward_QG = np.array([[1, 0, 0, 0], [1, 1, 1, 1]], np.float64)
    # mean 1/4, Bessel variance (9 + 1 + 1 + 1) / 16 / 3 = 1/4, std 1/2
    got = advantages.group_advantages(reward_QG, AdvConfig())
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [[1.5, -0.5, -0.5, -0.5], [0, 0, 0, 0]], rtol=1e-5)
    assert list(advantages.zero_advantage(got)) == [False, True]


def test_dr_grpo_only_subtracts_the_mean():
    got = advantages.group_advantages(np.array([[1, 0, 0, 0]], np.float32), AdvConfig("dr_grpo"))
    np.testing.assert_allclose(got, [[0.75, -0.25, -0.25, -0.25]])


def test_maxrl_divides_by_the_mean():
    """Successes of a group with mean 1/4 get 3, those of one with mean 3/4 get 1/3; failures -1."""
    got = advantages.group_advantages(
        np.array([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], np.float32), AdvConfig("maxrl")
    )
    want = [[3, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1], [0, 0, 0, 0]]
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo", "maxrl"])
def test_a_group_of_one_has_mean_0_and_std_1(kind):
    got = advantages.group_advantages(np.array([[1], [0]], np.float32), AdvConfig(kind))
    np.testing.assert_allclose(got, [[1], [0]], rtol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "want", "slope"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside the clip: -A s, whose derivative by log s is itself
        (1.5, 2.0, -2.4, 0.0),  # A > 0 above the clip: -A 1.2, flat
        (0.5, 2.0, -1.0, -1.0),  # A > 0 below the clip: the free term is the larger
        (0.5, -2.0, 1.6, 0.0),  # A < 0 below the clip: -A 0.8, flat
        (2.0, -2.0, 4.0, 4.0),  # A < 0 above the clip: free
        (10.0, -2.0, 6.0, 0.0),  # A < 0 far above: the dual clip bounds the loss at -A 3
        (10.0, 2.0, -2.4, 0.0),  # the dual clip is for A < 0 only
    ],
)
def test_policy_loss_by_hand(ratio, advantage, want, slope):
    def loss(logp_new):
        return losses.policy_loss(
            logp_new, logp_new - jnp.float32([-3.0]), jnp.float32([advantage]), LossConfig()
        ).loss.sum()

    got, gradient = jax.value_and_grad(loss)(jnp.float32([-3.0 + np.log(ratio)]))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(gradient, [slope], rtol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "advantage", "slope"),
    [
        (0.10, 0.35, 1.0, -3.5),  # up by .25: free, although the ratio is 3.5
        (0.50, 0.90, 1.0, 0.0),  # up by .4, more than clip_high
        (0.50, 0.90, -1.0, 1.8),  # the advantage moves it back
        (0.40, 0.10, -1.0, 0.0),  # down by .3, more than clip_low
        (0.40, 0.10, 1.0, -0.25),  # the advantage moves it back
        (0.001, 0.0001, -1.0, 0.1),  # a tenth, but down by .0009 only
    ],
)
def test_dppo_masks_by_the_shift_of_probability(old, new, advantage, slope):
    cfg = LossConfig(ratio="dppo", clip_low=0.2, clip_high=0.28)

    def loss(logp_new):
        token = losses.policy_loss(logp_new, logp_new - jnp.log(old), jnp.float32(advantage), cfg)
        return token.loss, token

    (_, token), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.log(jnp.float32(new)))
    np.testing.assert_allclose(gradient, slope, rtol=1e-4)
    assert token.clipped == (slope == 0) and token.dual_clipped == 0


def test_self_distillation_by_hand():
    """At p = q/2, q and 2 q: r - 1 - log r, and its derivative r - 1. At 100 q the line from
    9 - log 10 of slope 9.
    """
    q = jnp.log(jnp.float32([0.4, 0.4, 0.4, 0.008]))
    p = jnp.log(jnp.float32([0.2, 0.4, 0.8, 0.8]))
    value, pull = jax.vjp(lambda p: losses.self_distillation(p, q), p)
    want = [-0.5 + np.log(2), 0, 1 - np.log(2), 9 + 8 * np.log(10)]
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones(4))[0], [-0.5, 0, 1, 9], atol=1e-5)


def test_self_distillation_is_the_divergence_in_expectation():
    """Over tokens of q, value and gradient are those of sum q log(q / p)."""
    z, q = jnp.float32([0.3, -1.0, 0.5]), jnp.float32([0.7, 0.2, 0.1])

    def sampled(z):
        return jnp.sum(q * losses.self_distillation(jax.nn.log_softmax(z), jnp.log(q)))

    def divergence(z):
        return jnp.sum(q * (jnp.log(q) - jax.nn.log_softmax(z)))

    np.testing.assert_allclose(sampled(z), divergence(z), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(sampled)(z), jax.grad(divergence)(z), atol=1e-6)


def test_clip_higher_moves_only_the_upper_bound():
    cfg = LossConfig(clip_low=0.2, clip_high=0.28)
    got = losses.policy_loss(
        jnp.zeros(2), jnp.log(jnp.float32([1.5, 0.5])), jnp.float32([1.0, -1.0]), cfg
    )
    np.testing.assert_allclose(got.loss, [-1.28, 0.8], rtol=1e-6)
    assert list(got.clipped) == [1, 1] and list(got.dual_clipped) == [0, 0]


def test_log_ratios_are_held_within_20():
    got = losses.policy_loss(
        jnp.float32([0.0]), jnp.float32([100.0]), jnp.float32([-1.0]), LossConfig(dual_clip=1e12)
    )
    np.testing.assert_allclose(got.loss, [np.exp(20.0)], rtol=1e-5)


def test_kls_by_hand():
    new, ref = jnp.float32([-1.0, -1.0]), jnp.float32([-2.0, -1.0])
    np.testing.assert_allclose(losses.kl(new, ref, "k1"), [1.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(losses.kl(new, ref, "k2"), [0.5, 0.0], atol=1e-7)
    # exp(d) - d - 1 at d = -1
    np.testing.assert_allclose(losses.kl(new, ref, "k3"), [np.exp(-1), 0.0], atol=1e-6)
    # clipped
    np.testing.assert_allclose(losses.kl(jnp.float32([-9.0]), jnp.float32([0.0]), "k3"), [10.0])


@pytest.mark.parametrize(
    ("aggregation", "want"),
    [
        ("token-mean", [1 / 6, 1 / 6, 1 / 6]),
        ("seq-mean-token-sum", [1 / 3, 1 / 3, 1 / 3]),
        ("seq-mean-token-mean", [1 / 6, 1 / 12, 1 / 3]),
        ("seq-mean-token-sum-norm", [1 / 10, 1 / 10, 1 / 10]),
    ],
)
def test_aggregation_scale_by_hand(aggregation, want):
    """Lengths 2 and 4 are trained. One sequence is masked: it has no tokens but counts as a
    sequence.
    """
    np.testing.assert_allclose(
        losses.aggregation_scale(np.array([2, 4, 0]), aggregation, 10), want, rtol=1e-6
    )


def test_weights_by_hand():
    templated = np.float32([-1.0, -1.0, -1.0, -1.0])
    plain = templated + np.log(np.float32([1.0, 0.005, 20.0, 0.02]))
    np.testing.assert_array_equal(
        distill.distill_weights(plain, templated, DistillConfig(eps_low=0.99)), [1, 0, 0, 1]
    )
    soft = distill.distill_weights(plain, templated, DistillConfig(clip="soft", eps_low=0.99))
    np.testing.assert_allclose(soft, [1, 2, 0.5, 1], rtol=1e-4)  # 0.01 / 0.005 and 10 / 20
    np.testing.assert_allclose(
        soft * distill.density_ratio(plain, templated), [1, 0.01, 10, 0.02], rtol=1e-4
    )
    for mode in ("plain", "importance", "off"):
        np.testing.assert_array_equal(
            distill.distill_weights(plain, templated, DistillConfig(mode=mode)), [1, 1, 1, 1]
        )
