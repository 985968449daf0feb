"""Log-probs of given tokens from hidden states, for the wanted tokens only and without [tokens, V]
logits in memory.

Wanted positions are moved to the front, and the output head runs over them in chunks: a loop of
dynamic length, forward and backward. The backward pass recomputes each chunk's logits. Rows that
are split over devices stay in place: W parts of the batch are processed in parallel with the whole
head, which is gathered once. Its gradient is summed over the parts and scattered once at the end.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from p2o_jax.models import sharding

PADDING_LOGIT = -1e30  # finite: with -inf the entropy would be NaN


@jax.named_scope("logprobs")
def token_logps(
    x_WND: Float[Array, "W N D"],
    head_VD: Float[Array, "V D"],
    target_WN: Int[Array, "W N"],
    wanted_WN: Bool[Array, "W N"],
    temperature: float | jax.Array,
    vocab: int,
    chunk: int,
    entropy_gradient: bool = True,
    mesh: Mesh | None = None,
    divisor: float = 1.0,
    cap: float = 0.0,
) -> tuple[Float[Array, "W N"], Float[Array, "W N"]]:
    """Returns log p(target) and the entropy of that prediction, float32; both 0 where not wanted.

    Args:
        x_WND: hidden states of each part of the batch.
        head_VD: the output head, split like a learner's weight.
        target_WN: tokens to score.
        wanted_WN: which positions to compute.
        temperature: divides the logits.
        vocab: rows of the head from here on are padding.
        chunk: tokens of a part whose logits exist at one time.
        entropy_gradient: whether the entropy has a gradient.
        mesh: the mesh, with W over data x fsdp; None: one device.
        divisor: see `capped`, which is applied before the temperature.
        cap: likewise.
    """
    size = min(chunk, x_WND.shape[1])
    options = _Options(vocab, size, entropy_gradient, head_VD.dtype, mesh, divisor, cap)
    return _logps(x_WND, head_VD, target_WN, wanted_WN, jnp.float32(temperature), options)


def capped(logits: jax.Array, divisor: float, cap: float) -> jax.Array:
    """Returns the logits over a divisor, then kept within a cap: cap tanh(logits / cap). A cap of 0
    is none.
    """
    logits = logits if divisor == 1 else logits / divisor
    return cap * jnp.tanh(logits / cap) if cap else logits


class _Options(NamedTuple):
    vocab: int
    size: int  # tokens of a chunk
    entropy_gradient: bool
    head_dtype: Any
    mesh: Mesh | None
    divisor: float
    cap: float


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _logps(
    x_WND: Any, head_VD: Any, target_WN: Any, wanted_WN: Any, temperature: Any, options: _Options
):
    return _forward(x_WND, head_VD, target_WN, wanted_WN, temperature, options)[0]


def _forward(
    x_WND: Any, head_VD: Any, target_WN: Any, wanted_WN: Any, temperature: Any, options: _Options
):
    size = options.size
    head_VD = sharding.gathered(head_VD.astype(x_WND.dtype), options.mesh)
    order_WN = jnp.argsort(~wanted_WN, axis=1, stable=True)
    x, target = _take(x_WND, order_WN, size), _take(target_WN, order_WN, size)

    def one(i: jax.Array, done: Any) -> Any:
        z_WnV = _scores(_chunk(x, i, size), head_VD, temperature, options)
        most_Wn1 = z_WnV.max(axis=-1, keepdims=True)
        e_WnV = jnp.exp(z_WnV - most_Wn1)
        total_Wn = e_WnV.sum(axis=-1)
        logz_Wn = most_Wn1[..., 0] + jnp.log(total_Wn)
        own_Wn = jnp.take_along_axis(z_WnV, _chunk(target, i, size)[..., None], axis=-1)[..., 0]
        # einsum: on CPU, XLA's product and sum is 30 times slower
        mean_Wn = jnp.einsum("WnV,WnV->Wn", e_WnV, z_WnV) / total_Wn
        fresh = (own_Wn - logz_Wn, logz_Wn - mean_Wn, logz_Wn)
        return tuple(
            lax.dynamic_update_slice_in_dim(all_WN, part, i * size, axis=1)
            for all_WN, part in zip(done, fresh, strict=True)
        )

    empty = jnp.zeros(x.shape[:2], jnp.float32)
    logp, entropy, logz = lax.fori_loop(0, _num_chunks(wanted_WN, size), one, (empty, empty, empty))
    back_WN = jnp.argsort(order_WN, axis=1)
    out = tuple(
        jnp.where(wanted_WN, jnp.take_along_axis(y, back_WN, axis=1), 0.0) for y in (logp, entropy)
    )
    return out, (
        x_WND,
        head_VD,
        target_WN,
        wanted_WN,
        temperature,
        order_WN,
        back_WN,
        logz,
        entropy,
    )


def _backward(options: _Options, saved: Any, cotangents: Any) -> Any:
    size = options.size
    x_WND, head_VD, target_WN, wanted_WN, temperature, order_WN, back_WN, logz, entropy = saved
    x, target = _take(x_WND, order_WN, size), _take(target_WN, order_WN, size)
    by_logp, by_entropy = (
        _take(jnp.where(wanted_WN, g, 0.0), order_WN, size)[..., None] for g in cotangents
    )

    def one(i: jax.Array, done: Any) -> Any:
        dx, dhead_WVD = done
        x_WnD, logz_Wn1 = _chunk(x, i, size), _chunk(logz, i, size)[..., None]
        z_WnV = _scores(x_WnD, head_VD, temperature, options)
        p_WnV = jnp.exp(z_WnV - logz_Wn1)
        hit_WnV = _chunk(target, i, size)[..., None] == jnp.arange(z_WnV.shape[-1])[None, None]
        dz_WnV = _chunk(by_logp, i, size) * (hit_WnV - p_WnV)
        if options.entropy_gradient:
            dz_WnV -= (
                _chunk(by_entropy, i, size)
                * p_WnV
                * (z_WnV - logz_Wn1 + _chunk(entropy, i, size)[..., None])
            )
        dz_WnV = dz_WnV / temperature
        if options.cap:  # 1 - tanh^2; for padding, whose p is 0, the square is infinite
            tanh_WnV = z_WnV * temperature / options.cap
            dz_WnV *= 1 - jnp.minimum(jnp.square(tanh_WnV), 1)
        if options.divisor != 1:
            dz_WnV /= options.divisor
        dz_WnV = dz_WnV.astype(x.dtype)
        dx = lax.dynamic_update_slice_in_dim(
            dx, jnp.einsum("WnV,VD->WnD", dz_WnV, head_VD), i * size, axis=1
        )
        return dx, dhead_WVD + jnp.einsum(
            "WnV,WnD->WVD", dz_WnV, x_WnD, preferred_element_type=jnp.float32
        )

    W = x.shape[0]
    start = (jnp.zeros_like(x), jnp.zeros((W, *head_VD.shape), jnp.float32))
    dx, dhead_WVD = lax.fori_loop(0, _num_chunks(wanted_WN, size), one, start)
    dx_WND = jnp.take_along_axis(dx, back_WN[..., None], axis=1)
    # parts exchange gradients in the compute dtype, like those of other weights
    if W > 1:
        dhead_WVD = dhead_WVD.astype(x.dtype)
    dhead_VD = sharding.scattered(dhead_WVD, options.mesh).astype(options.head_dtype)
    return dx_WND, dhead_VD, None, None, jnp.zeros_like(temperature)


_logps.defvjp(_forward, _backward)


def _scores(
    x_WnD: jax.Array, head_VD: jax.Array, temperature: jax.Array, options: _Options
) -> jax.Array:
    z = jnp.einsum("WnD,VD->WnV", x_WnD, head_VD, preferred_element_type=jnp.float32)
    z = capped(z, options.divisor, options.cap) / temperature
    V, vocab = head_VD.shape[0], options.vocab
    return z if vocab == V else jnp.where((jnp.arange(V) < vocab)[None, None], z, PADDING_LOGIT)


def _num_chunks(wanted_WN: jax.Array, size: int) -> jax.Array:
    """Returns the chunks of the fullest part. All parts run the same number of iterations."""
    return -(-wanted_WN.sum(axis=1, dtype=jnp.int32).max() // size)


def _take(x: jax.Array, order_WN: jax.Array, size: int) -> jax.Array:
    """Returns the positions in this order, padded to whole chunks."""
    index = order_WN.reshape(*order_WN.shape, *(1,) * (x.ndim - 2))
    taken = jnp.take_along_axis(x, index, axis=1)
    padding = -x.shape[1] % size
    return jnp.pad(taken, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))


def _chunk(x: jax.Array, i: jax.Array, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, i * size, size, axis=1)
