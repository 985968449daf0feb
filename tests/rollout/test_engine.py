"""The sampler: teacher forcing, every rollout once, and texts that depend only on weights, prompt,
key and name.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax.config import RolloutConfig
from p2o_jax.models import sharding, transformer
from p2o_jax.models.attention import decoding, pallas_append, pallas_decode, reference
from p2o_jax.rollout import scheduler
from p2o_jax.rollout.engine import Engine, Work
from p2o_jax.rollout.programs import Program
from p2o_jax.runtime import distributed, rng
from p2o_jax.types import Request, SamplingParams
from tests.factories import make_spec

SPEC = make_spec()
ONE_LAYER = make_spec(layers=1)  # where only the programs and their order matter
STOPS = (7, 31)
BUCKETS, CAPACITY, SLOTS = (8, 16), 40, 8
SAMPLING = SamplingParams(1.0, CAPACITY)
KEY = rng.key(0, "test")


@functools.cache
def init_params(spec):
    params = transformer.init(spec, jax.random.key(0))
    return jax.tree.map_with_path(lambda path, w: w if "norm" in path[-1].key else w * 8, params)


@functools.cache
def make_engine(shape=(1, 1, 1), capacities=(CAPACITY,), spec=SPEC, **settings):
    """Returns an engine on a mesh of this shape, and its weights in rollout layout."""
    num_devices = shape[0] * shape[1] * shape[2]
    mesh = sharding.make_mesh(shape, devices=jax.devices()[:num_devices])
    usual = {
        "questions": 10,
        "group_size": 4,
        "prompt_buckets": BUCKETS,
        "slots": SLOTS,
        "prompt_cache_tokens": 2048,
        "prefill_tokens": 512,
    }
    cfg = RolloutConfig(**{**usual, **settings})
    engine = Engine(spec, mesh, cfg, capacities, STOPS, 0, jnp.float32)
    return engine, engine.to_rollout_layout(init_params(spec))


@functools.cache
def make_requests(count=40) -> list[Request]:
    """Prompts of 1 to 16 tokens, four rollouts of each."""
    rng = np.random.default_rng(0)
    prompts = [
        tuple(int(t) for t in rng.integers(0, SPEC.vocab, n))
        for n in (1, 2, 8, 16, 9, 5, 15, 7, 3, 12)
    ]
    return [Request(prompts[i // 4 % len(prompts)], f"r{i}") for i in range(count)]


def texts(completions) -> list[list[int]]:
    return [c.token_ids.tolist() for c in completions]


@functools.cache
def baseline():
    """Returns the completions of one device with SLOTS slots."""
    engine, weights = make_engine()
    return engine.generate(weights, make_requests(), SAMPLING, KEY)


def test_log_probs_are_those_of_teacher_forcing():
    filtered = SamplingParams(1.3, 20, top_k=10, top_p=0.9, min_p=0.02)
    for sampling in (
        SAMPLING,
        SamplingParams(0.7, CAPACITY),
        filtered,
        SamplingParams(0.0, 12),
        SamplingParams(0.7, CAPACITY, plain_logps=True),
    ):
        engine, weights = make_engine()
        completions = (
            baseline()
            if sampling is SAMPLING
            else engine.generate(weights, make_requests(), sampling, KEY)
        )
        token = np.zeros((len(completions), 16 + CAPACITY), np.int32)
        segment = np.zeros_like(token)
        for n, (request, c) in enumerate(zip(make_requests(), completions, strict=True)):
            whole = [*request.prompt_ids, *c.token_ids]
            token[n, : len(whole)], segment[n, : len(whole)] = whole, 1
        position = np.broadcast_to(np.arange(token.shape[1]), token.shape)
        forced, *_ = _token_logps(
            init_params(SPEC),
            token,
            position,
            segment,
            1.0 if sampling.plain_logps else sampling.temperature or 1.0,
        )
        for request, c, row in zip(make_requests(), completions, np.asarray(forced), strict=True):
            start = len(request.prompt_ids)
            np.testing.assert_allclose(
                c.logp_R, row[start : start + len(c.token_ids)], rtol=1e-5, atol=1e-5
            )


@jax.jit
def _token_logps(params, token, position, segment, temperature):
    return transformer.token_logps(SPEC, params, token, position, segment, temperature)


def test_greedy_takes_the_most_likely_token():
    engine, weights = make_engine()
    request = make_requests()[8]
    (completion,) = engine.generate(weights, [request], SamplingParams(0.0, 12), KEY)
    ids = jnp.asarray([[*request.prompt_ids, *completion.token_ids]])
    best = np.asarray(_most_likely(ids))
    np.testing.assert_array_equal(best[len(request.prompt_ids) - 1 : -1], completion.token_ids)


@jax.jit
def _most_likely(ids):
    """Returns the most likely next token at each position of [1, T] ids."""
    mixing = transformer.within_segments(jnp.ones_like(ids))
    params = init_params(SPEC)
    x, *_ = transformer.hidden(SPEC, params, ids, jnp.arange(ids.size)[None], mixing)
    return transformer.logits(SPEC, params, x[0]).argmax(axis=-1)


def test_every_request_is_answered_once_and_in_order():
    completions = baseline()
    assert len(completions) == len(make_requests())
    lengths = [len(c.token_ids) for c in completions]
    assert len(set(lengths)) > 8 and max(lengths) <= CAPACITY
    engine, weights = make_engine()
    engine.take_work()
    seen = []
    engine.generate(weights, make_requests(), SAMPLING, KEY, seen.append)
    assert sum(seen) == len(make_requests())
    work = engine.take_work()
    # a slot step for each token: nothing is decoded twice, the stop token is counted
    assert work.busy == sum(lengths)
    assert work.busy / SLOTS <= work.steps < work.busy / SLOTS + 2 * CAPACITY
    assert work.computed == SLOTS * work.steps
    assert engine.take_work() == Work()
    assert engine.generate(weights, [], SAMPLING, KEY) == []


def test_a_request_may_have_a_limit_of_its_own():
    """A limited response is the beginning of the unlimited one; 0 and a limit beyond the call's
    change nothing.
    """
    engine, weights = make_engine()
    limits = [(0, 1, 5, CAPACITY, CAPACITY + 9)[i % 5] for i in range(40)]
    requests = [
        dataclasses.replace(r, max_new_tokens=n)
        for r, n in zip(make_requests(), limits, strict=True)
    ]
    limited = engine.generate(weights, requests, SAMPLING, KEY)
    for n, got, whole in zip(limits, limited, baseline(), strict=True):
        np.testing.assert_array_equal(got.token_ids, whole.token_ids[: n or CAPACITY])
        assert got.stopped == (whole.stopped and len(whole.token_ids) <= (n or CAPACITY))
    assert sum(len(c.token_ids) == 5 for c in limited) >= 4


def test_the_stop_token_ends_a_rollout_and_is_kept_and_scored():
    completions = baseline()
    for c in completions:
        assert (
            c.token_ids.dtype == np.int32
            and c.logp_R.dtype == np.float32
            and len(c.logp_R) == len(c.token_ids) > 0
        )
        assert not set(c.token_ids[:-1].tolist()) & set(STOPS)
        assert c.stopped == (c.token_ids[-1] in STOPS)
        assert c.stopped or len(c.token_ids) == CAPACITY
        assert np.all(c.logp_R < 0)
    assert {c.stopped for c in completions} == {True, False}


@pytest.mark.parametrize("limit", [1, 5])
def test_max_new_tokens_is_honoured_and_a_shorter_text_is_the_beginning_of_a_longer_one(limit):
    engine, weights = make_engine()
    cut = engine.generate(weights, make_requests(), SamplingParams(1.0, limit), KEY)
    assert texts(cut) == [t[:limit] for t in texts(baseline())]
    assert [c.stopped for c in cut] == [c.token_ids[-1] in STOPS for c in cut]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"slots": 3}, marks=pytest.mark.slow),
        pytest.param({"slots": 64, "min_slots": 32}, marks=pytest.mark.slow),
        {"slots": 16, "min_slots": 4, "prompt_buckets": (16,)},
        pytest.param({"slots": 16, "min_slots": 0}, marks=pytest.mark.slow),
        {"group_size": 1, "questions": 40},
        pytest.param({"prompt_buckets": (5, 16, 30)}, marks=pytest.mark.slow),
        {"prompt_buckets": (16,), "prompt_cache_tokens": 32, "prefill_tokens": 16},
        pytest.param({"prompt_buckets": (40,), "share_prefixes": False}, marks=pytest.mark.slow),
        pytest.param({"prompt_buckets": (40,), "prefill_tokens": 8}, marks=pytest.mark.slow),
        pytest.param({"capacities": (CAPACITY, 64), "questions": 1}, marks=pytest.mark.slow),
        pytest.param({"shape": (1, 8, 1)}, marks=pytest.mark.slow),
        {"shape": (2, 2, 2)},
        pytest.param({"shape": (1, 4, 2)}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_same_text_whatever(changes):
    engine, weights = make_engine(**changes)
    got = engine.generate(weights, make_requests(), SAMPLING, KEY)
    assert texts(got) == texts(baseline())
    for a, b in zip(got, baseline(), strict=True):
        np.testing.assert_allclose(a.logp_R, b.logp_R, rtol=1e-4, atol=1e-5)


def test_the_same_text_in_any_order_and_company():
    engine, weights = make_engine()
    want = texts(baseline())
    order = np.random.default_rng(1).permutation(len(want))
    shuffled = engine.generate(weights, [make_requests()[i] for i in order], SAMPLING, KEY)
    assert texts(shuffled) == [want[i] for i in order]
    for some in ([17], [0, 39, 20]):
        assert texts(
            engine.generate(weights, [make_requests()[i] for i in some], SAMPLING, KEY)
        ) == [want[i] for i in some]


def test_key_and_name_make_the_text():
    engine, weights = make_engine()
    prompt = make_requests()[8].prompt_ids
    twice = engine.generate(
        weights, [Request(prompt, "a"), Request(prompt, "b"), Request(prompt, "a")], SAMPLING, KEY
    )
    a, b, again = texts(twice)
    assert a == again and a != b
    (other,) = texts(
        engine.generate(weights, [Request(prompt, "a")], SAMPLING, rng.key(0, "other"))
    )
    assert other != a


def test_keys_of_two_phases_or_steps_differ():
    names = [
        (seed, phase, step)
        for seed in (0, 1)
        for phase in ("rollout", "gepa")
        for step in range(20)
    ]
    keys = {
        tuple(np.asarray(jax.random.key_data(rng.key(seed, *rest))).tolist())
        for seed, *rest in names
    }
    assert len(keys) == len(names)
    words = {
        tuple(w)
        for w in rng.name_words([f"train/{i}/{g}" for i in range(200) for g in range(8)]).tolist()
    }
    assert len(words) == 1600


def test_what_is_listed_and_compiled_ahead_is_all_that_runs():
    engine, params = make_engine(capacities=(20, 24), spec=ONE_LAYER)
    plain, filtered = SamplingParams(1.0, 20), SamplingParams(1.0, 20, top_k=2)
    listed = [program for sampling in (plain, filtered) for program in engine.needed(sampling, 16)]
    engine.programs.compile(listed)
    # any prompts or whole groups; prompt cache and prefill, decoding twice
    assert len(engine.programs) == 1 + len(BUCKETS) * (1 + 2 * (2 + 2))
    keys = [rng.key(epoch, "again") for epoch in range(3)]
    counter = distributed.CompileCounter()
    for key in keys:
        for sampling in (
            SamplingParams(0.3, 3),
            SamplingParams(0.0, 17),
            SamplingParams(2.0, 20, plain_logps=True),
            SamplingParams(0.5, 9, top_p=0.4, min_p=0.1),
        ):
            for count in (1, 40, 90):
                engine.generate(params, make_requests(count), sampling, key)
            engine.generate(params, make_requests()[::4], sampling, key)  # no prompt shared
    assert counter.count == 0


def test_a_program_takes_the_shapes_it_was_made_for_and_no_others():
    engine, weights = make_engine()
    prompt_cache = engine.programs[Program("prompt_cache", 8, 256)]()
    run = engine.programs[Program("prefill", 8, 256)]
    with pytest.raises(TypeError, match="compiled"):
        run(
            weights,
            prompt_cache,
            np.zeros((1, 8), np.int32),
            np.zeros(1, np.int32),
            np.zeros(1, np.int32),
            np.int32(0),
        )


def test_rollouts_come_out_while_others_still_run():
    engine, weights = make_engine()
    seen = [
        [i for i, _ in finished]
        for finished in engine.stream(weights, make_requests(), SAMPLING, KEY)
    ]
    assert len(seen) >= 4
    assert sorted(i for some in seen for i in some) == list(range(40))
    stream = engine.stream(weights, make_requests(), SAMPLING, KEY)
    assert texts(c for _, c in next(stream)) == [texts(baseline())[i] for i in seen[0]]


def long_requests():
    """Returns forty questions under two templates that fill most of the prompt."""
    rng = np.random.default_rng(3)

    def draw(n):
        return tuple(int(t) for t in rng.integers(0, SPEC.vocab, n))

    templates = draw(60), draw(70)
    return [Request(templates[i % 2] + draw(4 + i % 7), f"long{i}") for i in range(40)]


def test_prefixes_in_common_are_computed_once_and_change_nothing():
    got = {}
    for share in (True, False):
        engine, weights = make_engine(prompt_buckets=(80,), share_prefixes=share, prefill_tokens=64)
        engine.take_work()
        got[share] = engine.generate(weights, long_requests(), SAMPLING, KEY), engine.take_work()
    assert texts(got[True][0]) == texts(got[False][0])
    for a, b in zip(got[True][0], got[False][0], strict=True):
        np.testing.assert_allclose(a.logp_R, b.logp_R, rtol=1e-4, atol=1e-5)
    assert got[True][1].prefilled < 0.6 * got[False][1].prefilled


def test_windows_over_long_caches_change_nothing(monkeypatch):
    monkeypatch.setattr(decoding, "WINDOWED_FROM", 16)
    settings = {"slots": 16, "group_size": 1, "questions": 40, "min_slots": 0}
    engine, weights = make_engine(prompt_buckets=(16,), **settings)
    assert texts(engine.generate(weights, make_requests(), SAMPLING, KEY)) == texts(baseline())


@pytest.mark.parametrize("kernel", [pytest.param("gpu", marks=pytest.mark.slow), "tpu"])
def test_the_same_text_with_kernels(kernel, monkeypatch):
    """The kernels run in the interpreter, on head sizes that they support."""
    spec = dataclasses.replace(ONE_LAYER, head_dim={"gpu": 16, "tpu": 128}[kernel])
    params = jax.tree.map(lambda w: w * 3, transformer.init(spec, jax.random.key(0)))
    mesh = sharding.make_mesh((1, 1, 1), devices=jax.devices()[:1])
    cfg = RolloutConfig(
        questions=2, group_size=4, slots=4, prompt_buckets=(16,), prompt_cache_tokens=64
    )
    attend = functools.partial(getattr(pallas_decode, kernel), interpret=True)
    append = (
        functools.partial(pallas_append.tpu_append, interpret=True)
        if kernel == "tpu"
        else reference.append
    )
    kinds = {
        "dense": decoding.for_mesh(mesh, 2, 8),
        kernel: decoding.CacheOps(
            reference.Cache,
            decoding.append_over_tensor(append, mesh),
            decoding.over_tensor(attend, mesh),
            False,
        ),
    }
    got = {}
    for name, kind in kinds.items():
        monkeypatch.setattr(decoding, "for_mesh", lambda *_, kind=kind: kind)
        engine = Engine(spec, mesh, cfg, [20], STOPS, 0, jnp.float32)
        got[name] = engine.generate(
            engine.to_rollout_layout(params), make_requests(12), SamplingParams(1.0, 20), KEY
        )
    assert texts(got[kernel]) == texts(got["dense"])
    for a, b in zip(got[kernel], got["dense"], strict=True):
        np.testing.assert_allclose(a.logp_R, b.logp_R, rtol=1e-4, atol=1e-5)


def test_an_int8_cache_is_close():
    """Measured: log-probs differ by .004 on average and .07 at most while texts agree; 34 of 40
    agree to the end.
    """
    engine, weights = make_engine(cache_dtype="int8", prompt_buckets=(16,))
    gaps = []
    for a, b in zip(
        engine.generate(weights, make_requests(), SAMPLING, KEY), baseline(), strict=True
    ):
        same = (
            len(a.token_ids)
            if np.array_equal(a.token_ids, b.token_ids)
            else int(np.argmax(_differ(a, b)))
        )
        gaps += list(np.abs(a.logp_R[:same] - b.logp_R[:same]))
    assert len(gaps) > 200 and 0 < np.mean(gaps) < 0.02 and np.max(gaps) < 0.2


def _differ(a, b):
    n = min(len(a.token_ids), len(b.token_ids))
    return np.append(a.token_ids[:n] != b.token_ids[:n], True)


def test_what_does_not_fit_is_refused():
    engine, weights = make_engine()
    with pytest.raises(ValueError, match=r"prompt of 17 tokens \(long\)"):
        engine.generate(weights, [Request((1,) * 17, "long")], SAMPLING, KEY)
    with pytest.raises(ValueError, match=r"max_new_tokens=41 .* built for: \[40\]"):
        engine.generate(weights, make_requests(), SamplingParams(1.0, CAPACITY + 1), KEY)


def test_long_tails_keep_the_slots_busy():
    """256 rollouts of nearly geometric length in 64 slots take less than twice the steps of a
    perfect packing.
    """
    engine, weights = make_engine(
        spec=ONE_LAYER, slots=64, questions=64, capacities=(160,), prompt_buckets=(16,)
    )
    requests = [Request(make_requests()[i % 40].prompt_ids, f"tail{i}") for i in range(256)]
    engine.take_work()
    completions = engine.generate(weights, requests, SamplingParams(1.0, 160), KEY)
    lengths = np.array([len(c.token_ids) for c in completions])
    assert lengths.max() > 4 * lengths.mean(), "the lengths have a long tail"
    work = engine.take_work()
    assert work.busy == lengths.sum()
    assert work.steps < 2 * lengths.sum() / 64
    assert work.busy > 0.85 * work.computed, "idle slots are dropped as the queue runs dry"


def test_whole_groups_read_their_prompt_together():
    """Forty rollouts of ten prompts share the rows of the prompt cache; four prompts asked once do
    not. See also the texts above.
    """
    engine, weights = make_engine(prompt_buckets=(16,))
    (wave,) = scheduler.plan(make_requests(), {16: 64}, 1, engine.max_rollouts)
    assert engine._shape(wave)[1] == 4
    (wave,) = scheduler.plan(
        [make_requests()[i] for i in (0, 4, 8, 12)], {16: 64}, 1, engine.max_rollouts
    )
    assert engine._shape(wave)[1] == 1
