"""Every fast path of attention against the dense reference on packed rows: values and gradients.

The chunked path runs here; splash runs in Pallas' interpreter, sharded over rows and heads. Of
cuDNN only the request can be checked without a GPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax.models import sharding
from p2o_jax.models.attention import packed, reference


def packed_rows(B, T, H, K, C, dtype=jnp.float32):
    """Returns q, k, v and segments: rows of several segments, one row without padding, one almost
    only padding.
    """
    keys = jax.random.split(jax.random.key(3), 3)
    q, k, v = (
        jax.random.normal(key, (B, T, heads, C), dtype)
        for key, heads in zip(keys, (H, K, K), strict=True)
    )
    rng, segment = np.random.default_rng(0), np.zeros((B, T), np.int32)
    for b in range(B):
        cuts = np.sort(rng.choice(np.arange(1, T), 3, replace=False))
        for s, (first, last) in enumerate(zip([0, *cuts[:2]], cuts, strict=True), start=1):
            segment[b, first:last] = s
    segment[0], segment[-1, 5:] = np.where(segment[0], segment[0], 3), 0
    return q, k, v, jnp.asarray(segment)


def output_and_gradients(path, q, k, v, segment):
    """Returns values of the real tokens only: those of padding are meaningless."""
    real = (segment > 0)[..., None, None]

    def loss(q, k, v):
        out = jnp.where(real, path(q, k, v, segment), 0.0)
        return jnp.sum(jnp.sin(out * 3.0)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        q, k, v
    )
    return out, *gradients


def assert_same(path, rows, window=0, soft_cap=0.0, **tolerance):
    options = {"window": window, "soft_cap": soft_cap}
    for got, want in zip(
        output_and_gradients(functools.partial(path, **options), *rows),
        output_and_gradients(functools.partial(reference.packed, **options), *rows),
        strict=True,
    ):
        np.testing.assert_allclose(
            np.asarray(got, np.float32), np.asarray(want, np.float32), **tolerance
        )


@pytest.mark.parametrize(
    ("T", "chunk", "window", "soft_cap"),
    [
        pytest.param(48, 16, 0, 0, marks=pytest.mark.slow),
        (50, 16, 0, 0),
        (33, 64, 0, 0),
        pytest.param(200, 8, 0, 0, marks=pytest.mark.slow),
        pytest.param(200, 8, 17, 0, marks=pytest.mark.slow),
        (150, 8, 7, 0.7),
    ],
)
def test_chunked_attention_is_the_dense_one(T, chunk, window, soft_cap):
    assert_same(
        functools.partial(packed.chunked, chunk=chunk),
        packed_rows(3, T, 4, 2, 8),
        window,
        soft_cap,
        rtol=1e-4,
        atol=1e-5,
    )


def test_chunks_need_the_keys_of_their_segments_by_hand():
    one, whole, padding = [1, 1, 2, 2, 2, 3, 3, 0], [1] * 8, [1, 1, 0, 0, 0, 0, 0, 0]
    for rows, needed in (
        ([one], [1, 1, 2, 2]),  # the third chunk has a query of the segment that begins at 2
        ([whole], [1, 2, 3, 4]),
        ([padding], [1, 1, 1, 1]),
        ([one, padding, whole], [1, 2, 3, 4]),  # the most of any row
    ):
        assert packed._chunks_needed(jnp.array(rows), 2).tolist() == needed
    assert packed._widths(1) == [1]
    assert packed._widths(20) == [1, 2, 3, 4, 6, 8, 12, 16, 20]


@pytest.mark.parametrize("window", [0, 11])
def test_chunks_have_the_gradients_of_sinks(window):
    q, k, v, segment = packed_rows(2, 60, 4, 2, 8)
    sink = jnp.array([-1.0, 0.0, 1.0, 2.0])

    def gradients(path):
        def loss(q, k, v, sink):
            out = path(q, k, v, segment, window, 0.0, sink)
            return jnp.sum(jnp.sin(3 * jnp.where((segment > 0)[..., None, None], out, 0)))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, k, v, sink)

    for got, want in zip(
        gradients(functools.partial(packed.chunked, chunk=8)),
        gradients(reference.packed),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_long_rows_on_cpu_are_chunked_and_hold_no_square_of_scores():
    rows = packed_rows(1, 2048, 2, 1, 8)
    memory = {}
    for path in (reference.packed, packed.by_length):
        compiled = (
            jax.jit(jax.grad(lambda q, path=path: path(q, *rows[1:]).sum()))
            .lower(rows[0])
            .compile()
        )
        memory[path] = compiled.memory_analysis().temp_size_in_bytes
    assert memory[packed.by_length] < memory[reference.packed] / 4


@pytest.mark.parametrize(
    ("shape", "kv_heads", "window", "soft_cap"),
    [((1, 1, 1), 2, 23, 2.0), ((2, 2, 2), 2, 0, 0), ((1, 4, 2), 1, 0, 0)],
)
def test_splash_attention_is_the_dense_one(shape, kv_heads, window, soft_cap):
    mesh = sharding.make_mesh(shape, jax.devices()[: int(np.prod(shape))])
    path = functools.partial(packed.splash, mesh=mesh, interpret=True)
    rows = packed_rows(4, 128, 4, kv_heads, 128)
    assert_same(path, rows, window, soft_cap, rtol=1e-3, atol=2e-4)


def test_splash_takes_any_shape():
    """Lengths and head sizes that its kernel does not support use the chunked path."""
    path = functools.partial(packed.splash, mesh=sharding.make_mesh((1, 1, 1), jax.devices()[:1]))
    assert_same(path, packed_rows(2, 40, 4, 2, 8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("window", "soft_cap"), [(0, 0), (9, 0), (9, 2.0)])
def test_what_is_asked_of_cudnn_is_the_dense_attention(window, soft_cap):
    """Mask and causality as given to cuDNN, computed by XLA. It has no soft cap."""
    rows = packed_rows(2, 128, 4, 2, 64, jnp.bfloat16)
    path = functools.partial(packed.cudnn, kernel="xla")
    assert_same(path, rows, window, soft_cap, rtol=0.05, atol=0.05)


def test_a_window_and_a_cap_by_hand():
    """Of four equal keys, each query sees itself and the one before; scores of 2 are capped."""
    np.testing.assert_array_equal(
        reference.causal(4, 2), [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    )
    q, k = jnp.full((1, 4, 1, 1), 2.0), jnp.array([0.0, 1.0, 0.0, 1.0]).reshape(1, 4, 1, 1)
    v = jnp.arange(4.0).reshape(1, 4, 1, 1)
    out = reference.packed(q, k, v, jnp.ones((1, 4), int), window=2, soft_cap=1.5)
    e = np.exp(1.5 * np.tanh(2 / 1.5))
    want = [0, e / (1 + e), (1 * e + 2) / (1 + e), (2 + 3 * e) / (1 + e)]
    np.testing.assert_allclose(out[0, :, 0, 0], want, rtol=1e-6)


@pytest.mark.gpu
def test_cudnn_attention_is_the_dense_one():
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("no GPU")
    rows = tuple(jax.device_put(x, device) for x in packed_rows(2, 256, 4, 2, 128, jnp.bfloat16))
    assert_same(packed.cudnn, rows, rtol=0.05, atol=0.05)


def test_the_mesh_s_devices_choose():
    assert packed.for_mesh(sharding.make_mesh((1, 1, 1), jax.devices()[:1])) is packed.by_length
