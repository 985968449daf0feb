"""What one update of the learner should be, from a plain reference: unpacked padded sequences,
dense logits, `jax.grad`, and AdamW by hand.

The reference shares only the transformer's forward pass with the learner. Everything is float32 on
a tiny model. The tests of this folder share its rollouts, parameters and config.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax import config
from p2o_jax.models import transformer
from p2o_jax.rl import advantages, batch
from p2o_jax.rl.learner import Learner
from p2o_jax.types import Rollout
from tests import factories
from tests.factories import single_device_mesh

SPEC = factories.make_spec()
NUM_GROUPS, GROUP, MAX_NEW, LONGEST_PROMPT, LONGEST_TEMPLATE = 6, 4, 9, 7, 5
TEMPERATURE = 0.7


def make_config(**changes) -> config.Config:
    """Returns the tests' config, with `section__field=value` changes."""
    cfg = config.resolve(
        config.Config(
            data=config.DataConfig(max_prompt_tokens=LONGEST_PROMPT),
            rollout=config.RolloutConfig(
                questions=NUM_GROUPS,
                group_size=GROUP,
                temperature=TEMPERATURE,
                max_new_tokens=MAX_NEW,
                prompt_buckets=(16,),
                slots=8,
                prompt_cache_tokens=512,
                prefill_tokens=256,
            ),
            gepa=config.GepaConfig(max_template_tokens=LONGEST_TEMPLATE),
            loss=config.LossConfig(clip_low=0.1, clip_high=0.15, dual_clip=1.4),
            distill=config.DistillConfig(eps_low=0.5, eps_high=0.8, drop_failed_templated=False),
            optim=config.OptimConfig(
                lr=1e-2,
                b2=0.99,
                warmup_frac=0.0,
                clip_norm=0.05,
                minibatch_questions=NUM_GROUPS,
                micro_rows=8,
            ),
            model=config.ModelConfig(remat="none"),
        )
    )
    return factories.change_config(cfg, **changes)


@jax.jit
def make_params(seed: int):
    """Returns params whose log-probs differ widely between tokens; another seed perturbs them
    slightly.
    """
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


OLD, NEW, REF = map(make_params, range(3))


@functools.cache
def make_rollouts(empty_template: bool = False) -> list[Rollout]:
    """Returns groups with two templated rollouts each, lengths 1 to MAX_NEW; group 2 has no
    success, group 4 no failure.
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
        question = factories.make_question(f"q{q}")
        for g in range(GROUP):
            prompt = (*template, *plain) if g < 2 else plain
            response = rng.integers(
                0, SPEC.vocab, MAX_NEW if g == 0 else rng.integers(1, MAX_NEW)
            ).astype(np.int32)
            rollouts.append(
                factories.make_rollout(
                    question,
                    "z" if g < 2 and not empty_template else "",
                    name=f"{q}/{g}",
                    prompt_ids=prompt,
                    plain_ids=plain,
                    completion=factories.make_completion(response, -3 * np.ones(len(response))),
                    score={2: 0.0, 4: 1.0}.get(q, float((q + g) % GROUP == 0 or g == 3)),
                )
            )
    return rollouts


def make_learner(cfg, mesh=None, kind=Learner):
    """Returns a learner of this config.

    Learners that differ only in what they compute outside their programs (advantages, weights,
    scales) share the compiled programs.
    """
    mesh = mesh or single_device_mesh()
    learner = kind(SPEC, mesh, cfg, num_updates=10, dtype=jnp.float32, pad_id=0)
    compiled = _compiled(
        dataclasses.replace(
            cfg,
            adv=config.AdvConfig(),
            distill=config.DistillConfig(),
            loss=dataclasses.replace(cfg.loss, aggregation="token-mean"),
        ),
        mesh,
    )
    learner._init, learner._update, learner._score = compiled
    return learner


@functools.cache
def _compiled(cfg, mesh):
    learner = Learner(SPEC, mesh, cfg, num_updates=10, dtype=jnp.float32, pad_id=0)
    return learner._init, learner._update, learner._score


def reward_table(rollouts) -> np.ndarray:
    return np.array([r.verdict.answer_score for r in rollouts], np.float32).reshape(-1, GROUP)


def learn(cfg, mesh=None, kind=Learner, rollouts=None):
    """Returns (metrics, gradient, params) of one update at NEW, with old log-probs from OLD."""
    rollouts = rollouts or make_rollouts()
    learner = make_learner(cfg, mesh, kind)
    place = lambda params: jax.device_put(params, learner.param_shardings)  # noqa: E731
    examples = batch.examples(
        rollouts, advantages.group_advantages(reward_table(rollouts), cfg.adv), cfg.distill
    )
    scored, score_stats = learner.score(place(OLD), place(REF), examples)
    state, stats = learner.update(learner.init(place(NEW)), scored)
    assert int(state.bad_updates) == 0
    adam = next(
        s
        for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
        if hasattr(s, "mu")
    )
    clipped_gradient = jax.tree.map(lambda m: np.asarray(m) / (1 - cfg.optim.b1), adam.mu)
    return score_stats | stats, clipped_gradient, jax.tree.map(np.asarray, state.params)


@functools.partial(jax.jit, static_argnums=3)
def padded_logps(params, token_NT, length_N, temperature):
    """Log-probs and entropies [N, T] of one sequence per row, from dense logits."""
    T = token_NT.shape[1]
    inside_NT = jnp.arange(T)[None] < length_N[:, None]
    position_NT = jnp.broadcast_to(jnp.arange(T)[None], token_NT.shape)
    x_NTD, *_ = transformer.hidden(
        SPEC,
        params,
        token_NT,
        position_NT,
        transformer.within_segments(inside_NT.astype(jnp.int32)),
    )
    logp_NTV = jax.nn.log_softmax(transformer.logits(SPEC, params, x_NTD) / temperature, axis=-1)
    entropy_NT = -jnp.sum(jnp.exp(logp_NTV) * logp_NTV, axis=-1)
    own_NT = jnp.take_along_axis(logp_NTV[:, :-1], token_NT[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(own_NT, ((0, 0), (1, 0))), jnp.pad(entropy_NT[:, :-1], ((0, 0), (1, 0)))


@functools.partial(jax.jit, static_argnums=3)
def _pull_back(params, token_NT, length_N, temperature, gradients):
    return jax.vjp(lambda p: padded_logps(p, token_NT, length_N, temperature), params)[1](
        gradients
    )[0]


def padded(prompts, responses):
    """Returns tokens [N, T] with one sequence per row, lengths, and a mask of the responses."""
    length_N = np.array([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)])
    token_NT = np.zeros((len(prompts), length_N.max()), np.int32)
    response_NT = np.zeros(token_NT.shape, bool)
    for n, (p, r) in enumerate(zip(prompts, responses, strict=True)):
        token_NT[n, : length_N[n]] = [*p, *r]
        response_NT[n, len(p) : length_N[n]] = True
    return jnp.asarray(token_NT), jnp.asarray(length_N), response_NT


def response_logps(params, prompts, responses, temperature=TEMPERATURE):
    """Returns the log-probs of each response."""
    token_NT, length_N, response_NT = padded(prompts, responses)
    logp_NT, _ = padded_logps(params, token_NT, length_N, temperature)
    return [np.asarray(row)[mask] for row, mask in zip(logp_NT, response_NT, strict=True)]


def on_rows(values, response_NT):
    out_NT = np.zeros(response_NT.shape, np.float32)
    out_NT[response_NT] = np.concatenate(values)
    return out_NT


def expected(cfg, rollouts=None):
    """What `learn` should return, written straight from steps 5 to 8 of the algorithm."""
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
                "maxrl": centred / (group.mean() + 1e-6),
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
    sampler_NT = on_rows([r.completion.logp_R for r in rollouts], response_NT)
    taught_N1 = np.array([r.templated and r.succeeded for r in rollouts])[:, None]
    # Tokens with zero advantage have no gradient when the loss has no other term. The learner
    # leaves them out of its means.
    counted_NT = train_NT & (
        np.ones_like(train_NT)
        if cfg.loss.kl != "off" or cfg.loss.entropy_coef
        else (advantage_N1 != 0) | (taught_N1 & (cfg.loss.self_distill_coef > 0))
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
        if cfg.loss.ratio == "dppo":
            moved_NT = (jnp.exp(new_NT) - jnp.exp(old_NT)) * np.sign(advantage_N1)
            bound_N1 = np.where(advantage_N1 > 0, cfg.loss.clip_high, cfg.loss.clip_low)
            clipped, dual = jnp.where(moved_NT > bound_N1, free + 1, free), jnp.zeros_like(dual)
            each = jnp.where(moved_NT > bound_N1, 0.0, free)
        policy = aggregate(jnp.where(dual, ceiling, each) * weight_NT)
        r_NT = jnp.exp(new_NT - sampler_NT)
        line_NT = 9 * jnp.log(r_NT / 10) + 9 - jnp.log(10.0)
        each_NT = jnp.where(r_NT > 10, line_NT, r_NT - 1 - jnp.log(r_NT))
        taught = aggregate(jnp.where(taught_N1, each_NT, 0.0))
        d_NT = jnp.clip(ref_NT - new_NT, -20, 20)
        k3 = aggregate(jnp.clip(jnp.exp(d_NT) - d_NT - 1, -10, 10))
        total = (
            policy
            + (cfg.loss.kl_coef * k3 if cfg.loss.kl == "k3" else 0.0)
            + cfg.loss.self_distill_coef * taught
            - cfg.loss.entropy_coef * aggregate(entropy_NT)
        )
        mean = lambda x: jnp.sum(jnp.where(counted_NT, x, 0.0)) / counted_NT.sum()  # noqa: E731
        return total, {
            "train/policy_loss": policy,
            "train/kl_loss": k3,
            "train/self_distill_loss": taught,
            "train/frac_clipped": mean(clipped > free),
            "train/frac_dual_clipped": mean(dual),
            "train/approx_kl": mean(old_NT - new_NT),
            "train/entropy": mean(entropy_NT),
        }

    forward = padded_logps(NEW, token_NT, length_N, cfg.rollout.temperature)
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
    if cfg.loss.self_distill_coef == 0:
        del numbers["train/self_distill_loss"]
    return {k: float(v) for k, v in numbers.items()}, gradient, jax.tree.map(adamw, NEW, gradient)


def check(got, want):
    """Asserts that two outcomes agree: every number in `want`, the clipped gradient, and the
    updated params.
    """
    numbers, gradient, params = want
    numbers = {k: v for k, v in numbers.items() if not k.startswith("perf/")}
    assert {k: got[0][k] for k in numbers} == pytest.approx(numbers, rel=2e-5, abs=1e-6)
    for path, g in jax.tree.leaves_with_path(gradient):
        ours = functools.reduce(lambda tree, k: tree[k.key], path, got[1])
        np.testing.assert_allclose(ours, g, rtol=1e-4, atol=1e-7, err_msg=f"gradient of {path}")
        # Adam's first step is the gradient's sign: compare only where rounding does not decide it.
        decided = np.abs(g) > 1e-5
        assert decided.mean() > 0.3
        theirs, mine = (
            functools.reduce(lambda tree, k: tree[k.key], path, tree) for tree in (params, got[2])
        )
        np.testing.assert_allclose(
            mine[decided], theirs[decided], rtol=1e-4, atol=1e-5, err_msg=f"params {path}"
        )
