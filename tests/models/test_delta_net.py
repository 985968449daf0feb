"""Gated DeltaNet: chunks of tokens, pieces of prompts and single tokens against the recurrence
written out in NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax.models import delta_net, sharding
from p2o_jax.models.delta_net import Inputs
from p2o_jax.models.spec import DeltaNet, LayerType, weights
from tests.factories import make_spec

DELTA = DeltaNet(key_heads=2, value_heads=4, key_dim=6, value_dim=5, conv=4)
TOKENS = 150  # two whole chunks, and a part of one


packed = jax.jit(delta_net.packed, static_argnums=0)
extend = jax.jit(delta_net.extend, static_argnums=0)
step = jax.jit(delta_net.step, static_argnums=0)


def make_inputs(tokens=TOKENS, rows=2, seed=0):
    """Random projections, with decays from almost none to almost all, as NumPy arrays."""
    return jax.tree.map(np.asarray, _draw(tokens, rows, seed))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(tokens, rows, seed):
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    K, V, c, w = DELTA.key_heads, DELTA.value_heads, DELTA.key_dim, DELTA.value_dim

    def normal(*shape):
        return jax.random.normal(next(keys), shape)

    return Inputs(
        normal(rows, tokens, K, c),
        normal(rows, tokens, K, c),
        normal(rows, tokens, V, w),
        -jnp.exp(2 * normal(rows, tokens, V) - 2),
        jax.nn.sigmoid(2 * normal(rows, tokens, V)),
        normal(K, c, DELTA.conv),
        normal(K, c, DELTA.conv),
        normal(V, w, DELTA.conv),
    )


def part(new, rows, tokens):
    """Returns the inputs of some tokens of some rows."""
    return Inputs(*(x[rows, tokens] for x in new[:5]), *new[5:])


def written_out(new):
    """The output of one row [T, V, c], and the state, token by token in float64."""
    q, k, v, g, b, *convs = (np.asarray(x, np.float64) for x in new)

    def convolved(x, w):
        padded = np.concatenate([np.zeros((DELTA.conv - 1, *x.shape[1:])), x])
        y = sum(padded[i : i + len(x)] * w[None, ..., i] for i in range(DELTA.conv))
        return y / (1 + np.exp(-y))

    q, k, v = (convolved(x, w) for x, w in zip((q, k, v), convs, strict=True))
    q, k = (x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6) for x in (q, k))
    state = np.zeros((DELTA.value_heads, DELTA.key_dim, DELTA.value_dim))
    out = np.zeros(v.shape)
    for t in range(len(v)):
        for h in range(DELTA.value_heads):
            key, query = k[t, h // 2], q[t, h // 2] * DELTA.key_dim**-0.5
            state[h] *= np.exp(g[t, h])
            state[h] += np.outer(key, b[t, h] * (v[t, h] - state[h].T @ key))
            out[t, h] = state[h].T @ query
    return out, state


def test_a_token_by_hand():
    """One head of one channel, k = q = 1 after normalization: S = .5 * 2 + .25 (6 - 1) = 2.25."""
    one = jnp.ones((1, 1, 1, 1))
    q = k = one
    out, state = delta_net.chunked(
        q, k, 6 * one, jnp.log(0.5) * one[0], 0.25 * one[0], 2 * one, jnp.ones((1, 1), jnp.int32)
    )
    np.testing.assert_allclose([out.item(), state.item()], [2.25, 2.25], rtol=1e-6)


def test_packed_rows_are_the_recurrence_of_each_segment():
    """Segments of 1, 70, 64 and 15 tokens: borders inside of chunks, and one at a chunk's."""
    new, sizes = make_inputs(), (1, 70, 64, 15)
    segment = np.repeat([1, 2, 3, 4], sizes)[None].repeat(2, axis=0)
    out = np.asarray(packed(DELTA, new, segment))
    start = 0
    for size in sizes:
        for row in (0, 1):
            expected, _ = written_out(part(new, row, slice(start, start + size)))
            np.testing.assert_allclose(out[row, start : start + size], expected, atol=2e-5)
        start += size
    # one segment less is seen
    other = np.where(segment == 3, 2, segment)
    assert np.abs(packed(DELTA, new, other) - out)[:, 71:].max() > 0.1


@pytest.mark.parametrize("pieces", [(150,), (16, 64, 70), (7, 1, 2, 140)])
def test_pieces_go_on_where_the_last_one_ended(pieces):
    """Each padded at the end; row 1 has two tokens less in its last piece."""
    new = make_inputs()
    memory, outputs, start = delta_net.empty(DELTA, 2), [], 0
    for size in pieces:
        padded = jax.tree.map(
            lambda x: np.pad(x, ((0, 0), (0, 3)) + ((0, 0),) * (x.ndim - 2), constant_values=-0.7),
            new[:5],
        )
        taken = Inputs(*(x[:, start : start + size + 3] for x in padded), *new[5:])
        end = start + size
        count = np.array([size, size - 2 * (end == TOKENS)])
        out, memory = extend(DELTA, taken, memory, count)
        outputs.append(np.asarray(out)[:, :size])
        start = end
    out, memory = np.concatenate(outputs, axis=1), jax.tree.map(np.asarray, memory)
    for row, count in ((0, TOKENS), (1, TOKENS - 2)):
        expected, state = written_out(part(new, row, slice(count)))
        np.testing.assert_allclose(out[row, :count], expected, atol=2e-5)
        np.testing.assert_allclose(memory.state_AVkv[row], state, atol=2e-5)
        tail = new.v_BTVc[row, count - 3 : count].transpose(1, 2, 0)
        np.testing.assert_array_equal(memory.tail_v_AVcW[row], tail)


def test_single_tokens_go_on_from_a_piece():
    new = make_inputs(20)
    first = Inputs(*(x[:, :12] for x in new[:5]), *new[5:])
    _, memory = extend(DELTA, first, delta_net.empty(DELTA, 2), np.array([12, 12]))
    outputs = []
    for t in range(12, 20):
        token = Inputs(*(x[:, t : t + 1] for x in new[:5]), *new[5:])
        out, memory = step(DELTA, token, memory)
        outputs.append(np.asarray(out))
    memory = jax.tree.map(np.asarray, memory)
    for row in (0, 1):
        expected, state = written_out(part(new, row, slice(None)))
        np.testing.assert_allclose(np.concatenate(outputs, 1)[row], expected[12:], atol=1e-5)
        np.testing.assert_allclose(memory.state_AVkv[row], state, atol=1e-5)


def test_gradients_are_those_of_single_tokens():
    new = make_inputs(70, rows=1)

    def by_steps(new):
        memory = delta_net.empty(DELTA, 1)

        def one(memory, x):
            out, memory = delta_net.step(DELTA, Inputs(*(y[:, None] for y in x), *new[5:]), memory)
            return memory, out[:, 0]

        over_time = tuple(jnp.moveaxis(x, 1, 0) for x in new[:5])
        _, out = jax.lax.scan(one, memory, over_time)
        return (out * jnp.arange(1.0, 71)[:, None, None, None]).sum()

    def at_once(new):
        out = delta_net.packed(DELTA, new, jnp.ones((1, 70), jnp.int32))
        return (out * jnp.arange(1.0, 71)[None, :, None, None]).sum()

    a, b = (jax.jit(jax.grad(f))(new) for f in (by_steps, at_once))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=5e-3), a, b)
    assert all(np.abs(x).max() > 1 for x in a)


def test_the_inverse_of_a_matrix_whose_powers_are_large():
    """All ones below the diagonal: the powers of this matrix have entries up to 10^17, its inverse
    has only 1 and -1.
    """
    ones = jnp.tri(64, k=-1)[None]
    inverse = np.asarray(delta_net._unit_lower_inverse(ones))[0]
    np.testing.assert_array_equal(inverse, np.eye(64) - np.eye(64, k=-1))
    random = jnp.tril(jax.random.normal(jax.random.key(0), (3, 2, 8, 8)), k=-1)
    expected = np.linalg.inv(np.eye(8)[None, None] + random)
    np.testing.assert_allclose(delta_net._unit_lower_inverse(random), expected, atol=1e-4)


def test_heads_are_split_over_the_tensor_axis():
    spec = make_spec(pattern=(LayerType(delta=DELTA), LayerType()))
    table = sharding.param_shardings(spec, sharding.make_mesh((1, 4, 2)), sharding.LEARNER)
    block = table["blocks_0"]
    assert tuple(block["delta_v"].spec) == (None, "fsdp", "tensor", None)
    assert tuple(block["a_log"].spec) == (None, "tensor")
    assert "q" not in weights(spec)["blocks_0"] and "delta_q" not in weights(spec)["blocks_1"]
