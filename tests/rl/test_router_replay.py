"""Replay of the sampler's choices of experts in the learner (train.router_replay)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax import config
from p2o_jax.models import experts, sharding, transformer
from p2o_jax.models.spec import Experts, LayerType
from p2o_jax.rl import batch
from p2o_jax.rl.batch import Example
from p2o_jax.rl.learner import Learner
from p2o_jax.rollout import memory
from p2o_jax.rollout.engine import Engine
from p2o_jax.types import Request, SamplingParams
from tests.factories import make_spec

# of five layers, the first, third and fifth have experts: two in a stack, one on its own
SPEC = make_spec(layers=5, pattern=(LayerType(experts=Experts(8, 2, 12)), LayerType()))
PROMPTS = [(1, 2, 3), (4, 5), (6, 7, 8, 9, 10), (3, 3, 3)]
CFG = config.Config(
    data=config.DataConfig(max_prompt_tokens=6),
    rollout=config.RolloutConfig(
        questions=4,
        group_size=1,
        max_new_tokens=8,
        prompt_buckets=(8,),
        slots=4,
        min_slots=0,
        temperature=1.0,
    ),
    optim=config.OptimConfig(lr=1e-2, micro_rows=2, row_tokens=20, warmup_frac=0.0),
    train=config.TrainConfig(router_replay=True),
    distill=config.DistillConfig(eps_low=0.5),
)


@functools.cache
def params():
    return jax.jit(lambda: transformer.init(SPEC, jax.random.key(3)))()


def sampled(shape, cfg=CFG):
    mesh = sharding.make_mesh(shape, jax.devices()[: math.prod(shape)])
    engine = Engine(SPEC, mesh, cfg.rollout, [8], [1], 0, jnp.float32, record_experts=True)
    requests = [Request(prompt, str(i)) for i, prompt in enumerate(PROMPTS)]
    weights = engine.to_rollout_layout(params())
    return engine.generate(weights, requests, SamplingParams(1.0, 8), jax.random.key(0))


@pytest.fixture(scope="module")
def completions():
    return sampled((1, 1, 1))


@pytest.fixture(scope="module")
def learner():
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    return Learner(SPEC, mesh, CFG, 1, jnp.float32, pad_id=0)


def examples_of(completions):
    return [
        Example(
            trained_on_ids=prompt,
            sampled_on_ids=prompt,
            response_ids=c.token_ids,
            advantage=1.0,
            trained=True,
            logp_sampler_R=c.logp_R,
            choice_RX=c.choice_RX,
        )
        for prompt, c in zip(PROMPTS, completions, strict=True)
    ]


def others(choice_RX):
    """Returns other experts of 8 than these."""
    return np.where(choice_RX, (choice_RX + 2) % 8 + 1, 0).astype(choice_RX.dtype)


def test_the_sampler_records_the_choices_that_teacher_forcing_makes(completions):
    """Of each response token's predecessor, the last token of the prompt included."""
    sequences = [(p, c.token_ids) for p, c in zip(PROMPTS, completions, strict=True)]
    choice = experts.choices_of_token(SPEC, True)
    assert choice.shape == (3 * 2,) and choice.dtype == np.uint8
    packed = batch.pack(sequences, 20, 2, 2, 0, choice)
    packed.replay([c.choice_RX for c in completions])
    rows = packed.flat

    @jax.jit
    def did(choice_BTX):
        routings = transformer.token_logps(
            SPEC, params(), rows.token, rows.position, rows.segment, recorded_BTX=choice_BTX
        ).routings.values()
        return sum(r.recorded.sum() for r in routings), sum(r.differ.sum() for r in routings)

    total = sum(len(c.token_ids) for c in completions) * 3
    assert did(rows.choice) == (total, 0)
    assert did(others(rows.choice))[1] > total / 2
    shifted = np.roll(rows.choice, 1, axis=1)
    assert did(shifted)[1] > 0


@pytest.mark.slow
def test_a_mesh_records_the_same(completions):
    for split, whole in zip(sampled((1, 2, 2)), completions, strict=True):
        np.testing.assert_array_equal(split.token_ids, whole.token_ids)
        np.testing.assert_array_equal(split.choice_RX, whole.choice_RX)


def test_what_several_hosts_gather_is_planned_for():
    """Chunks of ceil(4 / 8) and 4 slots, at most 4 rollouts of 8 tokens of 6 bytes, two shards."""
    mesh = sharding.make_mesh((1, 2, 1), jax.devices()[:2])
    cfg = dataclasses.replace(CFG.rollout, questions=8, slots=8)
    one, two = (
        Engine(SPEC, mesh, cfg, [8], [1], 0, jnp.float32, record_experts=recorded)
        for recorded in (False, True)
    )
    assert two.max_rollouts == 5 and two.sizes[0] == 4
    results = 2 * 5 * 8 * 6  # the state, and the next
    gathered = 5 * 2 * 8 * 6
    assert memory.plan(two).outputs - memory.plan(one).outputs == results + gathered


def test_nothing_is_recorded_unless_asked():
    choice = experts.choices_of_token(SPEC, False)
    assert choice.shape == experts.choices_of_token(make_spec(), True).shape == (0,)
    packed = batch.pack([((1, 2), np.array([3]))], 8, 1, 1, 0)
    packed.replay([np.zeros((0, 0), np.uint8)])
    assert packed.rows.choice.shape == (1, 1, 8, 0)
    many = make_spec(pattern=(LayerType(experts=Experts(256, 2, 4)),))
    assert experts.choices_of_token(many, True).dtype == np.uint16


def test_the_learner_uses_the_recorded_experts(completions, learner):
    """The same log-probs with the choices that it makes itself, others with other choices, up to
    the prompt of a sequence without any.
    """
    sequences = [(p, c.token_ids) for p, c in zip(PROMPTS, completions, strict=True)]
    own = [c.choice_RX for c in completions]
    free = learner.score_tokens(params(), sequences, 20)
    for a, b in zip(learner.score_tokens(params(), sequences, 20, own), free, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    changed = learner.score_tokens(params(), sequences, 20, [others(own[0]), *map(none, own[1:])])
    assert np.abs(changed[0] - free[0]).min() > 1e-4
    for a, b in zip(changed[1:], free[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def none(choice_RX):
    return choice_RX[:0]


def test_a_response_is_replayed_on_the_prompt_that_it_was_sampled_on(completions, learner):
    """Its log-probs on the plain prompt are those of the router's own choices there."""
    examples = [
        dataclasses.replace(e, trained_on_ids=(2, 2), choice_RX=others(e.choice_RX))
        for e in examples_of(completions)
    ]
    scored, stats = learner.score(params(), None, examples)
    free = learner.score_tokens(params(), [((2, 2), e.response_ids) for e in examples], 20)
    for e, logp in zip(scored, free, strict=True):
        np.testing.assert_allclose(e.logp_old_R, logp, rtol=1e-6, atol=1e-6)
    assert stats["train/logprob_gap_mean"] > 1e-3
    unchanged = [dataclasses.replace(e, trained_on_ids=(2, 2)) for e in examples_of(completions)]
    assert learner.score(params(), None, unchanged)[1]["train/logprob_gap_max"] < 1e-5


def test_an_update_reports_the_choices_that_it_would_have_made_otherwise(completions, learner):
    """Planted: the recorded choices of the first response are others."""
    planted = examples_of(completions)
    planted[0] = dataclasses.replace(planted[0], choice_RX=others(planted[0].choice_RX))
    values = []
    for examples in (examples_of(completions), planted):
        scored, _ = learner.score(params(), None, examples, first_update=4)
        state = learner.init(jax.tree.map(jnp.copy, params()))
        values.append(learner.update(state, scored)[1])
    assert values[0]["train/router_frac_differ"] == 0
    share = len(planted[0].response_ids) / sum(len(e.response_ids) for e in planted)
    assert share / 2 < values[1]["train/router_frac_differ"] <= share
    assert values[0]["train/logprob_gap_max"] < 1e-5 < values[1]["train/logprob_gap_max"]
