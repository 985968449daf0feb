"""Prefill: shared chunks are computed once, and the prompt cache is the same as without sharing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax.models import transformer
from p2o_jax.models.attention import reference
from p2o_jax.models.layer import Mixing
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rollout import layer_caches, prefill
from p2o_jax.rollout.prefill import Piece

SPEC = ModelSpec(
    "qwen3",
    vocab=50,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=48,
    qk_norm=True,
    tied=True,
)
extend = jax.jit(prefill.extend, static_argnums=0)
PARAMS = transformer.init(SPEC, jax.random.key(0))
WEIGHTS = PARAMS | {
    "blocks": tuple(
        jax.tree.map(lambda w: w[layer], PARAMS["blocks"]) for layer in range(SPEC.layers)
    )
}


def test_chunks_by_hand():
    assert [prefill.chunk_of(b) for b in (8, 16, 64, 128, 200, 512, 4096, 32768)] == [
        8,
        16,
        16,
        16,
        32,
        64,
        512,
        512,
    ]
    assert [prefill.positions(b) for b in (8, 64, 100, 200)] == [8, 64, 112, 224]


def test_plan_by_hand():
    """Chunks of 2. The last token of a prompt is never cached, and every prompt computes its own
    last chunk.
    """
    prompts = [
        (1, 2, 3, 4, 5),
        (1, 2, 3, 4, 6),
        (1, 2, 9, 9, 9, 9),
        (7,),
        (1, 2, 3),
        (1, 2, 3, 4, 5, 6),
    ]
    assert prefill.plan(prompts, 2, share=True) == [
        [Piece(0, 0), Piece(4, 4)],  # 4 ends here; 1, 2 and 5 begin as 0 does
        # 0 and 1 end here; 5 continues from 0, which is written last
        [Piece(1, 0), Piece(2, 0), Piece(0, 0)],
        [Piece(5, 0), Piece(2, 2)],
    ]
    alone = prefill.plan(prompts, 2, share=False)
    assert [[piece.row for piece in level] for level in alone] == [
        [0, 1, 2, 4, 5],
        [0, 1, 2, 5],
        [2, 5],
    ]
    assert all(piece.row == piece.source for level in alone for piece in level)
    assert prefill.plan([(7,), (8,)], 2, share=True) == []


def make_prompts() -> list[tuple[int, ...]]:
    """Returns prompts with a common header, two templates and different questions, of several
    lengths.
    """
    rng = np.random.default_rng(0)

    def draw(n):
        return tuple(int(t) for t in rng.integers(0, SPEC.vocab, n))

    header, templates = draw(9), (draw(20), draw(17))
    prompts = [
        header + templates[i % 2] + draw(int(n)) for i, n in enumerate(rng.integers(1, 18, 10))
    ]
    return [*prompts, header, (3,), (3, 4)]


def fill(prompts, chunk, share, rows_at_a_time, kind=reference.Transposed, dtype=jnp.float32):
    """Returns the prompt cache as the engine fills it, and the number of chunks computed."""
    prompt_cache = layer_caches.empty_caches(SPEC, len(prompts), (64, 64), dtype, kind)
    levels = prefill.plan(prompts, chunk, share)
    for level, pieces in enumerate(levels):
        for first in range(0, len(pieces), rows_at_a_time):
            token = np.zeros((rows_at_a_time, chunk), np.int32)
            count, source = np.zeros((2, rows_at_a_time), np.int32)
            row = np.full(rows_at_a_time, len(prompts), np.int32)
            for n, piece in enumerate(pieces[first : first + rows_at_a_time]):
                ids = prompts[piece.row][:-1][level * chunk : (level + 1) * chunk]
                token[n, : len(ids)], count[n], row[n], source[n] = ids, len(ids), *piece
            prompt_cache = extend(SPEC, WEIGHTS, prompt_cache, token, count, row, source, level)
    return prompt_cache, sum(map(len, levels))


def expected(prompt):
    """Returns k and v of each layer, [K, n - 1, C], from the packed forward pass."""
    n = len(prompt) - 1
    caches = whole_forward_pass(jnp.asarray([[*prompt[:-1], *[0] * (64 - n)]]))
    return [tuple(x[0, :n].swapaxes(0, 1) for x in layer) for layer in caches]


def no_recurrence(delta, new, cache):
    raise AssertionError("a layer without a DeltaNet")


@jax.jit
def whole_forward_pass(ids):
    """Returns k and v of each layer, [1, T, K, C]; padding at the end changes none before it."""

    def attend(layer, new, cache):
        q, k, v, _ = new
        return reference.packed(q, k, v, jnp.ones_like(ids)), (k, v)

    return transformer.hidden(
        SPEC, WEIGHTS, ids, jnp.arange(ids.size)[None], Mixing(attend, no_recurrence)
    )[1]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("chunk", "rows_at_a_time"), [(8, 4), pytest.param(16, 13, marks=pytest.mark.slow), (16, 1)]
)
@pytest.mark.parametrize("kind", [reference.Cache, reference.Transposed])
def test_the_bank_holds_what_a_whole_forward_pass_gives(share, chunk, rows_at_a_time, kind):
    prompts = make_prompts()
    prompt_cache, num_chunks = fill(prompts, chunk, share, rows_at_a_time, kind)
    whole = sum(-(-(len(p) - 1) // chunk) for p in prompts)
    assert num_chunks < 0.75 * whole if share else num_chunks == whole
    for row, prompt in enumerate(prompts):
        if len(prompt) > 1:
            for cache, (k, v) in zip(prompt_cache, expected(prompt), strict=True):
                held_k = (
                    cache.k_AKSC[row]
                    if kind is reference.Cache
                    else cache.k_AKSC[row].swapaxes(1, 2)
                )
                np.testing.assert_allclose(held_k[:, : len(prompt) - 1], k, rtol=1e-4, atol=2e-5)
                np.testing.assert_allclose(
                    cache.v_AKSC[row][:, : len(prompt) - 1], v, rtol=1e-4, atol=2e-5
                )


def test_a_wrong_source_is_noticed():
    """The comparison above fails if a prompt continues from another prompt's row."""
    prompts = [(1, 2, 3, 4, 5), (6, 2, 3, 4, 5)]
    prompt_cache = layer_caches.empty_caches(SPEC, 2, (64, 64), jnp.float32)
    for level, source in ((0, [0, 1]), (1, [0, 0])):
        token = np.array([p[2 * level : 2 * level + 2] for p in prompts], np.int32)
        prompt_cache = extend(
            SPEC,
            WEIGHTS,
            prompt_cache,
            token,
            np.array([2, 2]),
            np.array([0, 1]),
            np.array(source),
            jnp.int32(level),
        )
    assert np.abs(prompt_cache[0].k_AKSC[1, :, :4] - expected(prompts[1])[0][0]).max() > 1e-2


def test_an_int8_bank_is_off_by_its_rounding():
    prompts = make_prompts()
    prompt_cache, _ = fill(prompts, 16, True, 4, dtype=jnp.int8)
    k, v = expected(prompts[0])[0]
    cache, n = prompt_cache[0], len(prompts[0]) - 1
    held_v = cache.v_AKSC[0, :, :n] * cache.v_scale_AKS[0, :, :n, None]
    held_k = cache.k_AKSC[0, :, :, :n].swapaxes(1, 2) * cache.k_scale_AKS[0, :, :n, None]
    for held, x in ((held_k, k), (held_v, v)):
        assert np.abs(held - x).max() <= np.abs(x).max() / 254 + 1e-5
