"""Supervised updates against a plain reference: a dense forward pass of one sequence at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from p2o_jax import config
from p2o_jax.models import transformer
from p2o_jax.rl.sft_learner import SftExample, SftLearner
from tests.factories import make_spec, single_device_mesh

SPEC = make_spec(layers=1)
LENGTHS = [(3, 2), (5, 4), (2, 1), (4, 3)]  # of prompts and responses
# temperature, aggregation and entropy of reinforcement learning play no part here
RL = {"temperature": 0.5, "max_new_tokens": 4}
EXAMPLES = [
    SftExample(
        tuple(int(t) for t in np.random.default_rng(n).integers(0, SPEC.vocab, prompt)),
        np.random.default_rng(n + 9).integers(0, SPEC.vocab, response).astype(np.int32),
    )
    for n, (prompt, response) in enumerate(LENGTHS)
]


def make_learner(row_tokens: int, examples: int = 4) -> SftLearner:
    cfg = config.Config(
        data=config.DataConfig(max_prompt_tokens=5),
        rollout=config.RolloutConfig(**RL),  # type: ignore[arg-type]
        loss=config.LossConfig(entropy_coef=0.1),
        optim=config.OptimConfig(lr=1e-2, micro_rows=2, row_tokens=row_tokens, warmup_frac=0.0),
        model=config.ModelConfig(remat="none"),
        sft=config.SftConfig(examples=examples),
    )
    return SftLearner(SPEC, single_device_mesh(), cfg, 1, jnp.float32, pad_id=0)


@jax.jit
def reference_nll(params) -> jax.Array:
    """The mean over all response tokens, of one dense forward pass per example."""
    total, count = jnp.float32(0), 0
    for example in EXAMPLES:
        token_1T = jnp.array([[*example.prompt_ids, *example.response_ids]])
        T, first = token_1T.shape[1], len(example.prompt_ids)
        mixing = transformer.within_segments(jnp.ones((1, T), jnp.int32))
        hidden, *_ = transformer.hidden(SPEC, params, token_1T, jnp.arange(T)[None], mixing)
        logp_TV = jax.nn.log_softmax(transformer.logits(SPEC, params, hidden)[0])
        total -= logp_TV[jnp.arange(first - 1, T - 1), token_1T[0, first:]].sum()
        count += T - first
    return total / count


@pytest.fixture(scope="module")
def updated():
    """The params, and the optimizer state after one update with packed rows and with a row for each
    example: its first moment is a multiple of the gradient.
    """
    params = transformer.init(SPEC, jax.random.key(3))
    results = []
    for row_tokens in (12, 9):
        learner = make_learner(row_tokens)
        state, stats = learner.update(learner.init(params), EXAMPLES)
        results.append((state.opt_state, stats, learner))
    return params, results


def test_the_loss_and_its_gradient_are_those_of_a_direct_forward_pass(updated):
    params, results = updated
    nll, grads = jax.jit(jax.value_and_grad(reference_nll))(params)
    for _, stats, _ in results:
        assert stats["train/loss"] == pytest.approx(float(nll), rel=1e-5)
        assert stats["train/grad_norm"] == pytest.approx(float(optax.global_norm(grads)), rel=1e-4)
        assert stats["train/trained_tokens"] == sum(response for _, response in LENGTHS)


def test_packed_rows_give_the_update_of_unpacked_ones(updated):
    _, ((packed, packed_stats, _), (alone, alone_stats, _)) = updated
    assert packed_stats["perf/frac_row_tokens_real"] > alone_stats["perf/frac_row_tokens_real"]
    for a, b in zip(jax.tree.leaves(packed), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)


def test_held_out_loss_is_the_same_mean(updated):
    params, results = updated
    learner = results[0][2]
    assert learner.nll(params, EXAMPLES) == pytest.approx(float(reference_nll(params)), rel=1e-5)


def test_a_batch_larger_than_that_of_an_update_is_scored_in_parts(updated):
    params, _ = updated
    small = make_learner(12, examples=2)
    assert small.nll(params, EXAMPLES) == pytest.approx(float(reference_nll(params)), rel=1e-5)
