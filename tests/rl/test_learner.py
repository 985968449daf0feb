"""The learner against a plain reference: unpacked padded sequences, dense logits, `jax.grad`, and
AdamW by hand.

The reference shares with the learner only the transformer's forward pass. All at float32 on a tiny
model.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from p2o_jax import config
from p2o_jax.models import sharding, transformer
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rl import advantages, batch
from p2o_jax.rl.learner import Learner
from p2o_jax.rl.optimizer import make_optimizer
from p2o_jax.rollout.engine import Engine
from p2o_jax.runtime import rng
from p2o_jax.types import (
    Completion,
    Question,
    Request,
    Rollout,
    SamplingParams,
    TemplatedQuestion,
    Verdict,
)

SPEC = ModelSpec(
    family="qwen3", vocab=50, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48,
    qk_norm=True, tied=True,
)  # fmt: skip
NUM_GROUPS, GROUP, MAX_NEW, LONGEST_PROMPT, LONGEST_TEMPLATE = 6, 4, 9, 7, 5
TEMPERATURE = 0.7


def make_config(**changes) -> config.Config:
    """The tests' config; `section__field=value` changes it."""
    made = config.resolve(
        config.Config(
            data=config.DataConfig(max_prompt_tokens=LONGEST_PROMPT),
            rollout=config.RolloutConfig(
                questions=NUM_GROUPS, group_size=GROUP, temperature=TEMPERATURE, max_new_tokens=MAX_NEW, prompt_buckets=(16,), slots=8,
                prompt_cache_tokens=512, prefill_tokens=256,
            ),
            gepa=config.GepaConfig(max_template_tokens=LONGEST_TEMPLATE),
            loss=config.LossConfig(clip_low=0.1, clip_high=0.15, dual_clip=1.4),
            distill=config.DistillConfig(eps_low=0.5, eps_high=0.8, drop_failed_templated=False),
            optim=config.OptimConfig(lr=1e-2, b2=0.99, warmup_frac=0.0, clip_norm=0.05, minibatch_questions=NUM_GROUPS, micro_rows=8),
            model=config.ModelConfig(remat="none"),
        )
    )  # fmt: skip
    for key, value in changes.items():
        section, name = key.split("__")
        made = dataclasses.replace(
            made, **{section: dataclasses.replace(getattr(made, section), **{name: value})}
        )
    return made


def make_params(seed: int):
    """Params with log-probs that differ much between tokens; another seed moves them a little."""
    params = transformer.init(SPEC, jax.random.key(0))
    leaves, treedef = jax.tree.flatten(
        jax.tree.map_with_path(lambda path, w: w if "norm" in path[-1].key else w * 10, params)
    )
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        treedef,
        [
            w + (seed > 0) * 0.02 * jax.random.normal(k, w.shape)
            for w, k in zip(leaves, keys, strict=True)
        ],
    )


OLD, NEW, REF = make_params(0), make_params(1), make_params(2)


@pytest.fixture(scope="module", autouse=True)
def compile_cache(tmp_path_factory):
    """Most learners below run the same programs: they are compiled once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()


@functools.cache
def make_rollouts(empty_template: bool = False) -> list[Rollout]:
    """Groups with two templated rollouts each, lengths 1 to MAX_NEW; group 2 has no success,
    group 4 no failure.
    """
    rng = np.random.default_rng(5)
    rollouts = []
    for q in range(NUM_GROUPS):
        plain = tuple(int(t) for t in rng.integers(0, SPEC.vocab, 4 + q % 4))
        template = (
            ()
            if empty_template
            else tuple(int(t) for t in rng.integers(0, SPEC.vocab, LONGEST_TEMPLATE - q % 2))
        )
        question = Question(f"q{q}", ({"role": "user", "content": "?"},), "1")
        for g in range(GROUP):
            prompt = (*template, *plain) if g < 2 else plain
            response = rng.integers(
                0, SPEC.vocab, MAX_NEW if g == 0 else rng.integers(1, MAX_NEW)
            ).astype(np.int32)
            score = {2: 0.0, 4: 1.0}.get(q, float((q + g) % GROUP == 0 or g == 3))
            completion = Completion(response, -3 * np.ones(len(response), np.float32), True)
            ask = TemplatedQuestion(
                question, "z" if g < 2 and not empty_template else "", f"{q}/{g}"
            )
            rollouts.append(
                Rollout(
                    ask,
                    prompt,
                    plain,
                    completion,
                    "",
                    Verdict(score, 1.0, "correct" if score else "wrong"),
                )
            )
    return rollouts


def single() -> jax.sharding.Mesh:
    return sharding.make_mesh((1, 1, 1), devices=jax.devices()[:1])


def make_learner(cfg, mesh=None, kind=Learner):
    return kind(SPEC, mesh or single(), cfg, num_updates=10, dtype=jnp.float32, pad_id=0)


def reward_table(rollouts) -> np.ndarray:
    return np.array([r.verdict.answer_score for r in rollouts], np.float32).reshape(-1, GROUP)


def learn(cfg, mesh=None, kind=Learner, rollouts=None):
    """What the learner makes of the rollouts in one update at NEW, with old log-probs of OLD:
    (numbers, gradient, params).
    """
    rollouts = rollouts or make_rollouts()
    learner = make_learner(cfg, mesh, kind)
    place = lambda params: jax.device_put(params, learner.param_shardings)  # noqa: E731
    made = batch.examples(
        rollouts, advantages.group_advantages(reward_table(rollouts), cfg.adv), cfg.distill
    )
    made, score_stats = learner.score(place(OLD), place(REF), made)
    state, stats = learner.update(learner.init(place(NEW)), made)
    assert int(state.bad_updates) == 0
    adam = next(
        s
        for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
        if hasattr(s, "mu")
    )
    clipped_gradient = jax.tree.map(lambda m: np.asarray(m) / (1 - cfg.optim.b1), adam.mu)
    return score_stats | stats, clipped_gradient, jax.tree.map(np.asarray, state.params)


# ---- the reference
# --------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=3)
def _padded_logps(params, token_NT, length_N, temperature):
    T = token_NT.shape[1]
    inside_NT = jnp.arange(T)[None] < length_N[:, None]
    position_NT = jnp.broadcast_to(jnp.arange(T)[None], token_NT.shape)
    x_NTD, _ = transformer.hidden(
        SPEC, params, token_NT, position_NT, transformer.attend_packed(inside_NT.astype(jnp.int32))
    )
    logp_NTV = jax.nn.log_softmax(transformer.logits(SPEC, params, x_NTD) / temperature, axis=-1)
    entropy_NT = -jnp.sum(jnp.exp(logp_NTV) * logp_NTV, axis=-1)
    own_NT = jnp.take_along_axis(logp_NTV[:, :-1], token_NT[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(own_NT, ((0, 0), (1, 0))), jnp.pad(entropy_NT[:, :-1], ((0, 0), (1, 0)))


@functools.partial(jax.jit, static_argnums=3)
def _pull_back(params, token_NT, length_N, temperature, gradients):
    return jax.vjp(lambda p: _padded_logps(p, token_NT, length_N, temperature), params)[1](
        gradients
    )[0]


def padded(prompts, responses):
    """Tokens [N, T] of one sequence per row, lengths, and where the responses are."""
    length_N = np.array([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)])
    token_NT = np.zeros((len(prompts), length_N.max()), np.int32)
    response_NT = np.zeros(token_NT.shape, bool)
    for n, (p, r) in enumerate(zip(prompts, responses, strict=True)):
        token_NT[n, : length_N[n]] = [*p, *r]
        response_NT[n, len(p) : length_N[n]] = True
    return jnp.asarray(token_NT), jnp.asarray(length_N), response_NT


def response_logps(params, prompts, responses, temperature=TEMPERATURE):
    """log-probs of each response, as a list."""
    token_NT, length_N, response_NT = padded(prompts, responses)
    logp_NT, _ = _padded_logps(params, token_NT, length_N, temperature)
    return [np.asarray(row)[mask] for row, mask in zip(logp_NT, response_NT, strict=True)]


def on_rows(values, response_NT):
    out_NT = np.zeros(response_NT.shape, np.float32)
    out_NT[response_NT] = np.concatenate(values)
    return out_NT


def reference(cfg, rollouts=None):
    """The same as `learn`, straight from the algorithm's steps 5 to 8."""
    rollouts = rollouts or make_rollouts()
    responses = [r.completion.token_ids for r in rollouts]
    plain, templated = [r.plain_ids for r in rollouts], [r.prompt_ids for r in rollouts]
    trained_on = templated if cfg.distill.mode == "off" else plain
    advantage_N = []
    for group in reward_table(rollouts):
        std = np.sqrt(((group - group.mean()) ** 2).sum() / (GROUP - 1))
        centred = group - group.mean()
        advantage_N += list(
            {
                "grpo": centred / (std + 1e-6),
                "dr_grpo": centred,
                "rloo": centred * GROUP / (GROUP - 1),
            }[cfg.adv.kind]
        )
    old_x, old_Tx = (
        response_logps(OLD, trained_on, responses),
        response_logps(OLD, templated, responses),
    )
    old, weights, keep_N = [], [], []
    for r, on_x, on_Tx in zip(rollouts, old_x, old_Tx, strict=True):
        rho, low, high = np.exp(on_x - on_Tx), 1 - cfg.distill.eps_low, 1 + cfg.distill.eps_high
        w = np.ones_like(rho)
        if r.prompt_ids != r.plain_ids and cfg.distill.mode == "ratio_mask":
            outside = {"hard": np.zeros_like(rho), "soft": np.clip(rho, low, high) / rho}[
                cfg.distill.clip
            ]
            w = np.where((rho < low) | (rho > high), outside, 1.0)
        if r.prompt_ids != r.plain_ids and cfg.distill.mode == "transfer":
            w = np.full_like(
                rho, np.exp(min((on_x - on_Tx).mean(), 0.0) / cfg.distill.transfer_scale)
            )
        if r.prompt.template and r.verdict.answer_score == 0:
            w = w * cfg.distill.failed_weight
        old.append(on_Tx if cfg.distill.mode == "importance" else on_x)
        weights.append(w)
        keep_N.append(
            not (
                cfg.distill.drop_failed_templated
                and r.prompt.template
                and r.verdict.answer_score == 0
            )
        )
    token_NT, length_N, response_NT = padded(trained_on, responses)
    ref_NT = on_rows(response_logps(REF, trained_on, responses), response_NT)
    old_NT, weight_NT, keep_N1 = (
        on_rows(old, response_NT),
        on_rows(weights, response_NT),
        np.array(keep_N)[:, None],
    )
    train_NT = response_NT & keep_N1
    advantage_N1 = np.array(advantage_N, np.float32)[:, None]
    # with zero advantage and nothing else in the loss, a token has no gradient: the learner's means
    # leave those out
    counted_NT = train_NT & (
        np.ones_like(train_NT)
        if cfg.loss.kl != "off" or cfg.loss.entropy_coef
        else advantage_N1 != 0
    )

    def aggregate(x_NT):
        sums_N, count_N = jnp.sum(jnp.where(train_NT, x_NT, 0.0), axis=1), train_NT.sum(axis=1)
        if cfg.loss.aggregation == "token-mean":
            return sums_N.sum() / count_N.sum()
        if cfg.loss.aggregation == "seq-mean-token-sum":
            return sums_N.mean()
        if cfg.loss.aggregation == "seq-mean-token-mean":
            return (sums_N / np.maximum(count_N, 1)).mean()
        return sums_N.sum() / cfg.rollout.max_new_tokens

    def loss(new_NT, entropy_NT):
        s_NT = jnp.exp(jnp.clip(new_NT - old_NT, -20, 20))
        free, clipped = (
            -advantage_N1 * s_NT,
            -advantage_N1 * jnp.clip(s_NT, 1 - cfg.loss.clip_low, 1 + cfg.loss.clip_high),
        )
        ceiling = -advantage_N1 * cfg.loss.dual_clip
        each = jnp.maximum(free, clipped)
        dual = (advantage_N1 < 0) & (each > ceiling)
        policy = aggregate(jnp.where(dual, ceiling, each) * weight_NT)
        d_NT = jnp.clip(ref_NT - new_NT, -20, 20)
        k3 = aggregate(jnp.clip(jnp.exp(d_NT) - d_NT - 1, -10, 10))
        total = (
            policy
            + (cfg.loss.kl_coef * k3 if cfg.loss.kl == "k3" else 0.0)
            - cfg.loss.entropy_coef * aggregate(entropy_NT)
        )
        mean = lambda x: jnp.sum(jnp.where(counted_NT, x, 0.0)) / counted_NT.sum()  # noqa: E731
        return total, {
            "train/policy_loss": policy, "train/kl_loss": k3, "train/frac_clipped": mean(clipped > free),
            "train/frac_dual_clipped": mean(dual), "train/approx_kl": mean(old_NT - new_NT), "train/entropy": mean(entropy_NT),
        }  # fmt: skip

    forward = _padded_logps(NEW, token_NT, length_N, cfg.rollout.temperature)
    (total, numbers), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*forward)
    gradient = _pull_back(NEW, token_NT, length_N, cfg.rollout.temperature, gradients)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
    gradient = jax.tree.map(
        lambda g: np.asarray(g) * min(1.0, cfg.optim.clip_norm / norm), gradient
    )

    def adamw(p, g):  # the first step: both moments are corrected to g and g^2
        return np.asarray(p) - cfg.optim.lr * (
            g / (np.abs(g) + 1e-8) + cfg.optim.weight_decay * np.asarray(p)
        )

    numbers |= {
        "train/loss": total,
        "train/grad_norm": norm,
        "train/trained_tokens": counted_NT.sum(),
    }
    if cfg.loss.kl == "off":
        del numbers["train/kl_loss"]
    return {k: float(v) for k, v in numbers.items()}, gradient, jax.tree.map(adamw, NEW, gradient)


def check(got, want):
    """Asserts that two outcomes agree: every number that `want` has, the clipped gradient, the
    updated params.
    """
    numbers, gradient, params = want
    numbers = {k: v for k, v in numbers.items() if not k.startswith("perf/")}
    assert {k: got[0][k] for k in numbers} == pytest.approx(numbers, rel=2e-5, abs=1e-6)
    for path, g in jax.tree.leaves_with_path(gradient):
        ours = functools.reduce(lambda tree, k: tree[k.key], path, got[1])
        np.testing.assert_allclose(ours, g, rtol=1e-4, atol=1e-7, err_msg=f"gradient of {path}")
        # Adam's first step is the gradient's sign: only where rounding does not decide it
        decided = np.abs(g) > 1e-5
        assert decided.mean() > 0.3
        theirs, mine = (
            functools.reduce(lambda tree, k: tree[k.key], path, tree) for tree in (params, got[2])
        )
        np.testing.assert_allclose(
            mine[decided], theirs[decided], rtol=1e-4, atol=1e-5, err_msg=f"params {path}"
        )


VARIANTS = {
    "default": {},
    "soft mask": {"distill__clip": "soft"},
    "seq-mean-token-mean, KL, entropy": {
        "loss__aggregation": "seq-mean-token-mean", "loss__kl": "k3", "loss__kl_coef": 0.1, "loss__entropy_coef": 0.05,
    },
    "seq-mean-token-sum, failed templated dropped": {"loss__aggregation": "seq-mean-token-sum", "distill__drop_failed_templated": True},
    "seq-mean-token-sum-norm, Dr. GRPO": {"loss__aggregation": "seq-mean-token-sum-norm", "adv__kind": "dr_grpo"},
    "transfer": {"distill__mode": "transfer"},
    "failed templated weigh less": {"distill__failed_weight": 0.25},
    "off, failed templated weigh less": {"distill__mode": "off", "distill__failed_weight": 0.25},
    "importance": {"distill__mode": "importance"},
    "plain": {"distill__mode": "plain"},
    "off": {"distill__mode": "off"},
}  # fmt: skip


@functools.cache
def outcome(name: str):
    """The learner's own outcome, rows of two or more sequences, one device."""
    return learn(make_config(**VARIANTS[name], optim__row_tokens=40))


@pytest.mark.parametrize("name", VARIANTS)
def test_an_update_is_the_reference_s(name):
    """Zero-advantage groups, which the learner leaves out, are in the reference: they change
    only the means.
    """
    check(outcome(name), reference(make_config(**VARIANTS[name])))


def test_the_reference_tells_the_variants_apart():
    losses = [outcome(name)[0]["train/loss"] for name in VARIANTS]
    assert all(abs(a - b) > 1e-3 * abs(a) for i, a in enumerate(losses) for b in losses[:i])
    stats = outcome("default")[0]
    assert all(0.02 < stats[k] < 0.9 for k in ("train/frac_clipped", "train/frac_dual_clipped"))
    assert all(
        0.02 < stats[k] < 0.9 for k in ("distill/frac_masked_low", "distill/frac_masked_high")
    )
    assert stats["train/grad_norm"] > make_config().optim.clip_norm


class MaskShifted(Learner):
    def _put(self, rows):
        return super()._put(rows._replace(trained=np.roll(rows.trained, -1, axis=-1)))


class EndUntrained(Learner):
    def _put(self, rows):
        ends = rows.trained & ~np.roll(rows.trained, -1, axis=-1)
        return super()._put(rows._replace(trained=rows.trained & ~ends))


class RatioOnWrongPrompt(Learner):
    def _score_on(self, params, made, which, prompt, row_tokens):
        other = {"prompt_ids": "sampled_on_ids", "sampled_on_ids": "prompt_ids"}[prompt]
        return super()._score_on(params, made, which, other, config.templated_row_tokens(self.cfg))


class WeightsIgnored(Learner):
    def _put(self, rows):
        return super()._put(rows._replace(weight=np.ones_like(rows.weight)))


@pytest.mark.parametrize("kind", [MaskShifted, EndUntrained, RatioOnWrongPrompt, WeightsIgnored])
def test_the_reference_catches(kind):
    got = learn(make_config(optim__row_tokens=40), kind=kind)
    with pytest.raises(AssertionError):
        check(got, reference(make_config()))


def test_the_reference_catches_swapped_groups(monkeypatch):
    real = advantages.group_advantages
    monkeypatch.setattr(
        advantages, "group_advantages", lambda r, cfg: real(np.ascontiguousarray(r.T), cfg).T
    )
    got = learn(make_config(optim__row_tokens=40))
    with pytest.raises(AssertionError):
        check(got, reference(make_config()))


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__micro_rows": 2, "optim__row_tokens": 40},
        {"optim__micro_rows": 24},
        {"optim__row_tokens": 0},
        {"optim__row_tokens": 150},
        {"optim__row_tokens": 40, "model__remat": "full"},
        {"optim__row_tokens": 40, "model__remat": "dots"},
        {"optim__row_tokens": 40, "model__logit_chunk": 7},
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


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)])
def test_a_sharded_update_is_the_single_device_s(shape):
    check(learn(make_config(optim__row_tokens=40), sharding.make_mesh(shape)), outcome("default"))


def test_a_sharded_update_with_kl_and_entropy_is_the_single_device_s():
    name = "seq-mean-token-mean, KL, entropy"
    check(
        learn(make_config(**VARIANTS[name], optim__row_tokens=40), sharding.make_mesh((2, 2, 2))),
        outcome(name),
    )


def test_chunked_log_probs_are_the_dense_ones():
    """Values, entropies and gradients of token_logps with chunks that do not divide the tokens."""
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
        logp, entropy = transformer.token_logps(
            SPEC, params, token_NT, position, segment, TEMPERATURE, chunk=7
        )
        return jnp.sum(weight * (logp + 0.3 * entropy)), (logp, entropy)

    def dense(params):
        logp, entropy = _padded_logps(params, token_NT, length_N, TEMPERATURE)
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
    check(masked, reference(make_config(), rollouts))


def test_scores_are_log_probs_on_the_right_prompts():
    """old on x, rho of x against T(x, z), and the share of masked tokens."""
    cfg = make_config(optim__row_tokens=40)
    rollouts = make_rollouts()
    learner = make_learner(cfg)
    made = batch.examples(
        rollouts, advantages.group_advantages(reward_table(rollouts), cfg.adv), cfg.distill
    )
    scored, stats = learner.score(OLD, None, made)
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
    leaning = [min((x - Tx).mean(), 0.0) for x, Tx in zip(on_x, on_Tx, strict=True)]
    np.testing.assert_allclose(
        learner.transfers(OLD, rollouts), np.exp(np.array(leaning) / 0.3), rtol=1e-3
    )
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
    made = batch.examples(
        make_rollouts(),
        advantages.group_advantages(reward_table(make_rollouts()), cfg.adv),
        cfg.distill,
    )
    scored, _ = make_learner(cfg).score(OLD, REF, made)
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
    made = batch.examples(
        make_rollouts(),
        advantages.group_advantages(reward_table(make_rollouts()), cfg.adv),
        cfg.distill,
    )
    state = learner.init(jax.tree.map(jnp.copy, NEW))
    for size in (len(made), 13, 1, len(made)):
        scored, _ = learner.score(state.params, None, made[:size])
        state, stats = learner.update(state, scored)
        assert stats["train/trained_tokens"] == sum(
            len(e.response_ids) for e in scored if e.advantage != 0
        )
    before = jax.tree.map(np.asarray, state.params)
    fresh = learner.init(jax.tree.map(jnp.asarray, before))
    without = [e for e in made if e.advantage == 0]
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
    made = batch.examples(
        make_rollouts(),
        advantages.group_advantages(reward_table(make_rollouts()), cfg.adv),
        cfg.distill,
    )
    scored, _ = learner.score(NEW, None, made)
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
    """The first step's gap between the sampler's log-probs and the learner's, on the same prompts."""
    cfg = make_config(optim__row_tokens=40)
    engine = Engine(SPEC, single(), cfg.rollout, [MAX_NEW], [3, 4], 0, jnp.float32)
    requests = [Request(r.prompt_ids, r.prompt.name) for r in make_rollouts()]
    how = SamplingParams(TEMPERATURE, MAX_NEW)
    completions = engine.generate(engine.to_rollout_layout(OLD), requests, how, rng.key(0, "gap"))
    rollouts = [
        dataclasses.replace(r, completion=c)
        for r, c in zip(make_rollouts(), completions, strict=True)
    ]
    made = batch.examples(
        rollouts, advantages.group_advantages(reward_table(rollouts), cfg.adv), cfg.distill
    )
    _, stats = make_learner(cfg).score(OLD, None, made)
    assert 0 < stats["train/logprob_gap_mean"] <= stats["train/logprob_gap_max"] < 1e-4
