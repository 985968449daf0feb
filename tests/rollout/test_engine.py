"""The sampler: teacher forcing, every rollout once, and texts that depend on weights, prompt, key and name alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax import runtime
from p2o_jax.config import Rollout
from p2o_jax.models import sharding, transformer
from p2o_jax.models.spec import ModelSpec
from p2o_jax.records import Request, Sampling
from p2o_jax.rollout import waves
from p2o_jax.rollout.engine import Engine

SPEC = ModelSpec("qwen3", vocab=50, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, qk_norm=True, tied=True)
STOPS = (7, 31)
BUCKETS, CAPACITY, SLOTS = (8, 16), 40, 8
HOW = Sampling(1.0, CAPACITY)
KEY = runtime.key(0, "test")


def init_params():
    params = transformer.init(SPEC, jax.random.key(0))
    return jax.tree.map_with_path(lambda path, w: w if "norm" in path[-1].key else w * 8, params)


PARAMS = init_params()


@functools.cache
def make_engine(shape=(1, 1, 1), capacities=(CAPACITY,), **settings):
    """An engine on a mesh of this shape, and the weights laid out for it."""
    num_devices = shape[0] * shape[1] * shape[2]
    mesh = sharding.make_mesh(shape, devices=jax.devices()[:num_devices])
    usual = {"questions": 10, "group_size": 4, "prompt_buckets": BUCKETS, "slots": SLOTS, "bank_tokens": 2048, "prefill_tokens": 512}
    cfg = Rollout(**{**usual, **settings})
    engine = Engine(SPEC, mesh, cfg, capacities, STOPS, 0, jnp.float32)
    return engine, engine.lay_out(PARAMS)


@functools.cache
def make_requests(count=40) -> list[Request]:
    """Prompts of 1 to 16 tokens, four rollouts of each."""
    rng = np.random.default_rng(0)
    prompts = [tuple(int(t) for t in rng.integers(0, SPEC.vocab, n)) for n in (1, 2, 8, 16, 9, 5, 15, 7, 3, 12)]
    return [Request(prompts[i // 4 % len(prompts)], f"r{i}") for i in range(count)]


def texts(completions) -> list[list[int]]:
    return [c.token_ids.tolist() for c in completions]


@functools.cache
def baseline():
    """Completions of one device and SLOTS slots."""
    engine, weights = make_engine()
    return engine.generate(weights, make_requests(), HOW, KEY)


def test_log_probs_are_those_of_teacher_forcing():
    for how in (HOW, Sampling(0.7, CAPACITY), Sampling(1.3, 20, top_k=10, top_p=0.9, min_p=0.02), Sampling(0.0, 12)):
        engine, weights = make_engine()
        completions = baseline() if how is HOW else engine.generate(weights, make_requests(), how, KEY)
        token = np.zeros((len(completions), 16 + CAPACITY), np.int32)
        segment = np.zeros_like(token)
        for n, (request, c) in enumerate(zip(make_requests(), completions, strict=True)):
            whole = [*request.prompt_ids, *c.token_ids]
            token[n, : len(whole)], segment[n, : len(whole)] = whole, 1
        position = np.broadcast_to(np.arange(token.shape[1]), token.shape)
        forced, _ = _token_logps(PARAMS, token, position, segment, how.temperature or 1.0)
        for request, c, row in zip(make_requests(), completions, np.asarray(forced), strict=True):
            start = len(request.prompt_ids)
            np.testing.assert_allclose(c.logp_R, row[start : start + len(c.token_ids)], rtol=1e-5, atol=1e-5)


@jax.jit
def _token_logps(params, token, position, segment, temperature):
    return transformer.token_logps(SPEC, params, token, position, segment, temperature)


def test_greedy_takes_the_most_likely_token():
    engine, weights = make_engine()
    request = make_requests()[8]
    (completion,) = engine.generate(weights, [request], Sampling(0.0, 12), KEY)
    ids = jnp.asarray([[*request.prompt_ids, *completion.token_ids]])
    x, _ = transformer.hidden(SPEC, PARAMS, ids, jnp.arange(ids.size)[None], transformer.attend_packed(jnp.ones_like(ids)))
    best = np.asarray(transformer.logits(SPEC, PARAMS, x[0]).argmax(axis=-1))
    np.testing.assert_array_equal(best[len(request.prompt_ids) - 1 : -1], completion.token_ids)


def test_every_request_is_answered_once_and_in_order():
    completions = baseline()
    assert len(completions) == len(make_requests())
    lengths = [len(c.token_ids) for c in completions]
    assert len(set(lengths)) > 8 and max(lengths) <= CAPACITY
    engine, weights = make_engine()
    engine.take_work()
    seen = []
    engine.generate(weights, make_requests(), HOW, KEY, seen.append)
    assert sum(seen) == len(make_requests())
    busy, computed, steps = engine.take_work()
    assert busy == sum(lengths)  # a slot step for each token: nothing is decoded twice, the stop token is counted
    assert busy / SLOTS <= steps < busy / SLOTS + 2 * CAPACITY
    assert engine.take_work() == (0, 0, 0)
    assert engine.generate(weights, [], HOW, KEY) == []


def test_the_stop_token_ends_a_rollout_and_is_kept_and_scored():
    completions = baseline()
    for c in completions:
        assert c.token_ids.dtype == np.int32 and c.logp_R.dtype == np.float32 and len(c.logp_R) == len(c.token_ids) > 0
        assert not set(c.token_ids[:-1].tolist()) & set(STOPS)
        assert c.stopped == (c.token_ids[-1] in STOPS)
        assert c.stopped or len(c.token_ids) == CAPACITY
        assert np.all(c.logp_R < 0)
    assert {c.stopped for c in completions} == {True, False}


@pytest.mark.parametrize("limit", [1, 5])
def test_max_new_tokens_is_honoured_and_a_shorter_text_is_the_beginning_of_a_longer_one(limit):
    engine, weights = make_engine()
    cut = engine.generate(weights, make_requests(), Sampling(1.0, limit), KEY)
    assert texts(cut) == [t[:limit] for t in texts(baseline())]
    assert [c.stopped for c in cut] == [c.token_ids[-1] in STOPS for c in cut]


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": 3},
        {"slots": 64},
        {"slots": 16, "min_slots": 2},
        {"slots": 16, "min_slots": 0},
        {"group_size": 1, "questions": 40},
        {"prompt_buckets": (5, 16, 30)},
        {"prompt_buckets": (16,), "bank_tokens": 32, "prefill_tokens": 16},
        {"capacities": (CAPACITY, 64), "questions": 1},
        {"shape": (1, 8, 1)},
        {"shape": (2, 2, 2)},
        {"shape": (1, 4, 2)},
    ],
    ids=str,
)
def test_the_same_text_whatever(changes):
    engine, weights = make_engine(**changes)
    got = engine.generate(weights, make_requests(), HOW, KEY)
    assert texts(got) == texts(baseline())
    for a, b in zip(got, baseline(), strict=True):
        np.testing.assert_allclose(a.logp_R, b.logp_R, rtol=1e-4, atol=1e-5)


def test_the_same_text_in_any_order_and_company():
    engine, weights = make_engine()
    want = texts(baseline())
    order = np.random.default_rng(1).permutation(len(want))
    shuffled = engine.generate(weights, [make_requests()[i] for i in order], HOW, KEY)
    assert texts(shuffled) == [want[i] for i in order]
    for some in ([17], [0, 39, 20]):
        assert texts(engine.generate(weights, [make_requests()[i] for i in some], HOW, KEY)) == [want[i] for i in some]


def test_key_and_name_make_the_text():
    engine, weights = make_engine()
    prompt = make_requests()[8].prompt_ids
    twice = engine.generate(weights, [Request(prompt, "a"), Request(prompt, "b"), Request(prompt, "a")], HOW, KEY)
    a, b, again = texts(twice)
    assert a == again and a != b
    (other,) = texts(engine.generate(weights, [Request(prompt, "a")], HOW, runtime.key(0, "other")))
    assert other != a


def test_keys_of_two_phases_or_steps_differ():
    names = [(seed, phase, step) for seed in (0, 1) for phase in ("rollout", "gepa") for step in range(20)]
    keys = {tuple(np.asarray(jax.random.key_data(runtime.key(seed, *rest))).tolist()) for seed, *rest in names}
    assert len(keys) == len(names)
    words = {tuple(w) for w in runtime.name_words([f"train/{i}/{g}" for i in range(200) for g in range(8)]).tolist()}
    assert len(words) == 1600


def test_settings_lengths_and_numbers_compile_nothing_new():
    engine, weights = make_engine(capacities=(CAPACITY, 64))
    for how in (HOW, Sampling(1.0, 50), Sampling(1.0, 9, top_k=2), Sampling(1.0, 50, top_p=0.5)):
        engine.generate(weights, make_requests(), how, KEY)
        engine.generate(weights, make_requests()[::4], how, KEY)  # no prompt shared
    counter = runtime.CompileCounter()
    for i, how in enumerate(
        (Sampling(0.3, 3), Sampling(0.0, 41), Sampling(2.0, 64), Sampling(1.0, 30, top_p=0.4, min_p=0.1), Sampling(0.5, 60, top_k=9))
    ):
        for count in (1, 7, 40, 90):
            engine.generate(engine.lay_out(PARAMS), make_requests(count), how, runtime.key(i, "again"))
    assert counter.count == 0
    assert engine._prefill._cache_size() == 2 * len(BUCKETS)  # a bank for shared and one for single prompts
    assert {(c, g, f) for c, g, f in engine._decode} == {(c, g, f) for c in (CAPACITY, 64) for g in (1, 4) for f in (False, True)}
    assert all(run._cache_size() <= len(BUCKETS) for run in engine._decode.values())


def test_what_does_not_fit_is_refused():
    engine, weights = make_engine()
    with pytest.raises(ValueError, match=r"prompt of 17 tokens \(long\)"):
        engine.generate(weights, [Request((1,) * 17, "long")], HOW, KEY)
    with pytest.raises(ValueError, match=r"max_new_tokens=41 .* built for: \[40\]"):
        engine.generate(weights, make_requests(), Sampling(1.0, CAPACITY + 1), KEY)


def test_long_tails_keep_the_slots_busy():
    """256 rollouts of near-geometric length in 64 slots take less than twice the steps of a perfect packing."""
    engine, weights = make_engine(slots=64, questions=64, capacities=(160,), prompt_buckets=(16,))
    requests = [Request(make_requests()[i % 40].prompt_ids, f"tail{i}") for i in range(256)]
    engine.take_work()
    completions = engine.generate(weights, requests, Sampling(1.0, 160), KEY)
    lengths = np.array([len(c.token_ids) for c in completions])
    assert lengths.max() > 4 * lengths.mean(), "the lengths have a long tail"
    busy, computed, steps = engine.take_work()
    assert busy == lengths.sum()
    assert steps < 2 * lengths.sum() / 64
    assert computed < 1.3 * busy, "idle slots are dropped as the queue runs dry"


def test_whole_groups_read_their_prompt_together():
    """Forty rollouts of ten prompts share the bank's rows, four prompts asked once do not; see also the texts above."""
    engine, weights = make_engine(prompt_buckets=(16,))
    (wave,) = waves.plan(make_requests(), {16: 64}, 1, engine.max_rollouts)
    assert engine._shape(wave).group == 4
    (wave,) = waves.plan([make_requests()[i] for i in (0, 4, 8, 12)], {16: 64}, 1, engine.max_rollouts)
    assert engine._shape(wave).group == 1
