"""What layers with sliding windows keep: sizes and places by hand, and sampling against the golden
checkpoints of models with such layers.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax.config import RolloutConfig
from p2o_jax.models import hf, hf_config, sharding, transformer
from p2o_jax.models.attention.reference import Cache, Transposed, empty_cache
from p2o_jax.models.delta_net import DeltaState
from p2o_jax.models.spec import DeltaNet, LayerType
from p2o_jax.rollout import layer_caches
from p2o_jax.rollout.engine import Engine
from p2o_jax.rollout.programs import Program
from p2o_jax.types import Request, SamplingParams
from tests.factories import make_spec

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
SLIDING, FULL = LayerType(window=10), LayerType()


def test_a_window_shorter_than_the_longest_sequence_is_a_ring():
    assert [layer_caches.ring(SLIDING, n) for n in (9, 10, 11, 99)] == [0, 0, 10, 10]
    assert layer_caches.ring(FULL, 10**6) == 0


def test_the_prompt_cache_keeps_the_chunks_that_a_window_reaches():
    """The first query of a chunk of 4 sees 9 tokens before it, in three chunks."""
    spec = make_spec(pattern=(SLIDING, FULL))
    assert layer_caches.chunks_before(10, 4) == 3
    assert layer_caches.chunks_before(9, 4) == 2 and layer_caches.chunks_before(1, 4) == 0
    assert layer_caches.prompt_positions(spec, 64, 4) == (16, 64)
    assert layer_caches.prompt_positions(spec, 12, 4) == (12, 12)


@pytest.mark.parametrize("kind", [Cache, Transposed])
@pytest.mark.parametrize("num_cached", [3, 10, 13, 27])
def test_a_ring_gets_the_last_tokens_of_its_prompt(kind, num_cached):
    """Keys and values are the positions; the prompt cache is a ring of 16, the slot's of 6 + 4."""
    kept, row, slot = 16, 1, 2
    held = np.zeros((3, 1, kept, 2))
    for p in range(num_cached):
        held[row, 0, p % kept] = p
    keys = held.swapaxes(2, 3) if kind is Transposed else held
    prompts = kind(jnp.asarray(keys), jnp.asarray(held))
    empty = tuple(empty_cache(4, 1, size, 2, jnp.float32, kind) for size in (6, 4))
    filled = layer_caches.with_prompt(empty, slot, prompts, row, num_cached)
    values = np.concatenate([span.v_AKSC for span in filled], axis=2)
    assert not values[[0, 1, 3]].any()
    for p in range(max(num_cached - 10, 0), num_cached):
        assert (values[slot, 0, p % 10] == p).all()
    if kind is Transposed:
        keys = np.concatenate([span.k_AKSC.swapaxes(2, 3) for span in filled], axis=2)
        np.testing.assert_array_equal(keys, values)


def make_engine(spec, mesh, slots, group=1, cache_dtype="auto", dtype=jnp.float32):
    cfg = RolloutConfig(
        questions=8,
        group_size=group,
        slots=slots,
        min_slots=0,
        prompt_buckets=(48,),
        prompt_cache_tokens=480,
        cache_dtype=cache_dtype,
    )
    return Engine(spec, mesh, cfg, [16], [], 0, dtype)


def test_memory_is_that_of_the_window():
    """Two layers of each kind; the longest sequence has 48 + 16 - 1 tokens, the response 16."""
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    spec = make_spec(layers=4, pattern=(LayerType(window=24), FULL))
    engine = make_engine(spec, mesh, slots=4)
    state = engine.abstract_state(Program("slots", 48, capacity=16, size=4))
    positions = [sum(span.v_AKSC.shape[2] for span in spans) for spans in state.slots.spans]
    assert positions == [24, 16, 24, 16]
    assert [p and p.v_AKSC.shape[2] for p in state.slots.prompts] == [None, 48, None, 48]
    prompt_cache = engine.abstract_prompt_cache(Program("prompt_cache", 48, 10))
    assert [cache.v_AKSC.shape[2] for cache in prompt_cache] == [48, 48, 48, 48]
    wide = make_engine(make_spec(layers=4, pattern=(LayerType(window=63), FULL)), mesh, slots=4)
    state = wide.abstract_state(Program("slots", 48, capacity=16, size=4))
    assert [sum(x.v_AKSC.shape[2] for x in spans) for spans in state.slots.spans] == [16] * 4


def golden_requests(name):
    """Returns the golden prompts and greedy continuations; then prompts that begin like the first
    and go on like others, so that chunks are shared.
    """
    arrays = np.load(GOLDEN / name / "golden.npz")
    prompts = [
        tuple(map(int, ids[mask > 0]))
        for ids, mask in zip(arrays["input_ids"], arrays["attention_mask"], strict=True)
    ]
    longest = max(prompts, key=len)
    shared = [longest[:34] + longest[3:9], longest[:20] + longest[:13]]
    return prompts + shared, arrays["greedy_ids"]


def sequences(requests, completions):
    """Returns tokens and mask of prompts with their completions."""
    rows = [
        [*r.prompt_ids, *map(int, c.token_ids)] for r, c in zip(requests, completions, strict=True)
    ]
    width = 64
    tokens = np.array([row + [0] * (width - len(row)) for row in rows])
    return tokens, np.arange(width)[None] < np.array([[len(row)] for row in rows])


def greedy_samples(name, mesh, group):
    """Returns greedy completions of the golden prompts, with fewer slots than rollouts."""
    spec = hf_config.read_spec(GOLDEN / name).for_length(64)
    engine = make_engine(spec, mesh, slots=3, group=group)
    weights = engine.to_rollout_layout(hf.load(GOLDEN / name, spec))
    prompts, greedy = golden_requests(name)
    requests = [Request(p, f"{i}.{m}") for i, p in enumerate(prompts) for m in range(group)]
    sampling = SamplingParams(temperature=0.0, max_new_tokens=16)
    samples = engine.generate(weights, requests, sampling, jax.random.key(0))
    return [c.token_ids.tolist() for c in samples[: len(greedy) * group : group]], greedy.tolist()


@pytest.mark.parametrize(
    "lost",
    [
        "state_AVkv",
        "tail_v_AVcW",
        *(pytest.param(tail, marks=pytest.mark.slow) for tail in ("tail_q_AKcW", "tail_k_AKcW")),
    ],
)
def test_what_a_refill_loses_of_a_delta_net_is_seen(lost, monkeypatch):
    """Planted: the slot's state, or the tail of its convolution, is not that of its prompt."""
    whole = layer_caches.with_prompt

    def losing(held, slot, prompts, row, num_cached):
        filled = whole(held, slot, prompts, row, num_cached)
        if not isinstance(filled, DeltaState):
            return filled
        empty = getattr(filled, lost).at[slot].set(0.0)
        return filled._replace(**{lost: empty})

    monkeypatch.setattr(layer_caches, "with_prompt", losing)
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    samples, greedy = greedy_samples("qwen3_5", mesh, group=1)
    assert samples != greedy


def test_a_slot_keeps_a_state_of_fixed_size():
    """Whatever the lengths; and no copy of the prompt's keys and values."""
    delta = DeltaNet(2, 4, 8, 6, conv=4)
    spec = make_spec(layers=2, pattern=(LayerType(delta=delta), FULL))
    engine = make_engine(spec, sharding.make_mesh((1, 1, 1), jax.devices()[:1]), slots=4)
    state = engine.abstract_state(Program("slots", 48, capacity=16, size=4))
    assert [x.shape for x in state.slots.spans[0]] == [
        (4, 4, 8, 6), (4, 2, 8, 3), (4, 2, 8, 3), (4, 4, 6, 3),
    ]  # fmt: skip
    assert state.slots.prompts[0] is None and state.slots.prompts[1].v_AKSC.shape[2] == 48
    assert {x.dtype for x in state.slots.spans[0]} == {jnp.dtype(jnp.float32)}


def test_weights_used_in_float32_are_not_rounded_for_sampling():
    """Decays, sinks and biases of routers, in bfloat16 as in float32; the others are rounded."""
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    for name, exact in (("qwen3_5", {"a_log", "step_bias"}), ("gpt_oss", {"sinks", "router_bias"})):
        spec = hf_config.read_spec(GOLDEN / name)
        engine = make_engine(spec, mesh, slots=2, dtype=jnp.bfloat16)
        block = engine.abstract_weights["blocks"][0]
        assert {n for n, w in block.items() if w.dtype == jnp.float32} == exact
        assert {w.dtype for w in block.values()} == {jnp.dtype(jnp.float32), jnp.dtype("bfloat16")}
        loaded = hf.load(GOLDEN / name, spec, dtype="bfloat16")["blocks_0"]
        assert {n for n, w in loaded.items() if w.dtype == jnp.float32} == exact


@pytest.mark.parametrize(
    ("name", "shape", "group"),
    [
        ("gpt_oss", (1, 2, 4), 2),
        ("qwen3_5", (1, 1, 1), 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("gemma2", (1, 1, 1), 2),
                ("gemma2", (1, 2, 4), 2),
                ("gemma3_text", (1, 4, 2), 2),
                ("gemma3_text", (1, 1, 1), 1),
                ("olmo2", (1, 1, 1), 1),
                ("olmo3", (1, 1, 1), 2),
                ("smollm3", (1, 1, 1), 2),
                ("granite", (1, 1, 1), 1),
                ("phi3", (1, 1, 1), 2),
                ("ministral3", (1, 1, 1), 2),
                ("qwen3_moe", (1, 1, 1), 1),
                ("qwen3_moe", (1, 4, 2), 2),
                ("qwen3_moe_dense", (1, 1, 1), 2),
                ("gpt_oss", (1, 1, 1), 1),
                ("qwen3_5", (2, 2, 2), 2),
                ("qwen3_5", (1, 4, 2), 1),
            )
        ),
    ],
)
def test_samples_are_greedy_and_scored_as_by_transformers_and_the_learner(name, shape, group):
    """With fewer slots than rollouts, so that slots are filled again."""
    spec = hf_config.read_spec(GOLDEN / name).for_length(64)
    mesh = sharding.make_mesh(shape, jax.devices()[: int(np.prod(shape))])
    params = hf.load(GOLDEN / name, spec, sharding.param_shardings(spec, mesh, sharding.LEARNER))
    shards = sharding.num_shards(mesh)
    engine = make_engine(spec, mesh, slots=3 * shards, group=group)
    weights = engine.to_rollout_layout(params)
    prompts, greedy = golden_requests(name)
    requests = [
        Request(prompt, f"{i}.{member}")
        for i, prompt in enumerate(prompts)
        for member in range(group)
    ]
    samples = []
    for temperature in (0.0, 1.0):
        sampling = SamplingParams(temperature=temperature, max_new_tokens=16)
        samples.append(engine.generate(weights, requests, sampling, jax.random.key(0)))
    for i, completion in enumerate(samples[0][: len(greedy) * group]):
        np.testing.assert_array_equal(completion.token_ids, greedy[i // group])
    tokens, mask = sequences(requests, samples[1])
    position, segment = transformer.segments(mask)
    logps, *_ = jax.jit(transformer.token_logps, static_argnums=0)(
        spec, hf.load(GOLDEN / name, spec), tokens, position, segment
    )
    for row, request, completion in zip(np.asarray(logps), requests, samples[1], strict=True):
        start = len(request.prompt_ids)
        np.testing.assert_allclose(row[start : start + 16], completion.logp_R, rtol=1e-5, atol=1e-5)
