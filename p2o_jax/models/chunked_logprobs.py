"""Log-probs of given tokens from hidden states, without ever holding [tokens, V] logits and only
for the tokens that are wanted.

Wanted positions are moved to the front and the head runs over chunks of them, as many as there are
(a loop of dynamic length, forward and backward). The backward pass makes each chunk's logits again.
Rows that are split over devices stay where they are: S parts work side by side with the whole head,
gathered once, and its gradient is summed over them and scattered once, at the end.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from p2o_jax.models import sharding

PADDING_LOGIT = -1e30  # finite: an infinite one makes the entropy nan


def token_logps(
    x_SND: Float[Array, "S N D"],
    head_VD: Float[Array, "V D"],
    target_SN: Int[Array, "S N"],
    wanted_SN: Bool[Array, "S N"],
    temperature: float | jax.Array,
    vocab: int,
    chunk: int,
    entropy_gradient: bool = True,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "S N"], Float[Array, "S N"]]:
    """log p(target) at the temperature, and the entropy of that prediction, float32; both 0 where
    not wanted.

    `chunk` is the number of tokens of a part whose logits exist at one time; rows of the head from
    `vocab` on are padding. Of the mesh, where there is one, the head is split as a learner's weight
    is, and S over data x fsdp.
    """
    how = _How(vocab, min(chunk, x_SND.shape[1]), entropy_gradient, head_VD.dtype, mesh)
    return _logps(x_SND, head_VD, target_SN, wanted_SN, jnp.float32(temperature), how)


class _How(NamedTuple):
    vocab: int
    size: int  # of a chunk
    entropy_gradient: bool
    head_dtype: Any
    mesh: Mesh | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _logps(x_SND: Any, head_VD: Any, target_SN: Any, wanted_SN: Any, temperature: Any, how: _How):
    return _forward(x_SND, head_VD, target_SN, wanted_SN, temperature, how)[0]


def _forward(x_SND: Any, head_VD: Any, target_SN: Any, wanted_SN: Any, temperature: Any, how: _How):
    vocab, size = how.vocab, how.size
    head_VD = sharding.gathered(head_VD.astype(x_SND.dtype), how.mesh)
    order_SN = jnp.argsort(~wanted_SN, axis=1, stable=True)
    x, target = _take(x_SND, order_SN, size), _take(target_SN, order_SN, size)

    def one(i: jax.Array, done: Any) -> Any:
        z_ScV = _scores(_chunk(x, i, size), head_VD, temperature, vocab)
        most_Sc1 = z_ScV.max(axis=-1, keepdims=True)
        e_ScV = jnp.exp(z_ScV - most_Sc1)
        total_Sc = e_ScV.sum(axis=-1)
        logz_Sc = most_Sc1[..., 0] + jnp.log(total_Sc)
        own_Sc = jnp.take_along_axis(z_ScV, _chunk(target, i, size)[..., None], axis=-1)[..., 0]
        # as a product and a sum XLA's CPU code is 30 times slower
        mean_Sc = jnp.einsum("ScV,ScV->Sc", e_ScV, z_ScV) / total_Sc
        fresh = (own_Sc - logz_Sc, logz_Sc - mean_Sc, logz_Sc)
        return tuple(
            lax.dynamic_update_slice_in_dim(all_SN, part, i * size, axis=1)
            for all_SN, part in zip(done, fresh, strict=True)
        )

    empty = jnp.zeros(x.shape[:2], jnp.float32)
    logp, entropy, logz = lax.fori_loop(0, _num_chunks(wanted_SN, size), one, (empty, empty, empty))
    back_SN = jnp.argsort(order_SN, axis=1)
    out = tuple(
        jnp.where(wanted_SN, jnp.take_along_axis(y, back_SN, axis=1), 0.0) for y in (logp, entropy)
    )
    return out, (
        x_SND,
        head_VD,
        target_SN,
        wanted_SN,
        temperature,
        order_SN,
        back_SN,
        logz,
        entropy,
    )


def _backward(how: _How, kept: Any, cotangents: Any) -> Any:
    vocab, size = how.vocab, how.size
    x_SND, head_VD, target_SN, wanted_SN, temperature, order_SN, back_SN, logz, entropy = kept
    x, target = _take(x_SND, order_SN, size), _take(target_SN, order_SN, size)
    by_logp, by_entropy = (
        _take(jnp.where(wanted_SN, g, 0.0), order_SN, size)[..., None] for g in cotangents
    )

    def one(i: jax.Array, done: Any) -> Any:
        dx, dhead_SVD = done
        x_ScD, logz_Sc1 = _chunk(x, i, size), _chunk(logz, i, size)[..., None]
        z_ScV = _scores(x_ScD, head_VD, temperature, vocab)
        p_ScV = jnp.exp(z_ScV - logz_Sc1)
        hit_ScV = _chunk(target, i, size)[..., None] == jnp.arange(z_ScV.shape[-1])[None, None]
        dz_ScV = _chunk(by_logp, i, size) * (hit_ScV - p_ScV)
        if how.entropy_gradient:
            dz_ScV -= (
                _chunk(by_entropy, i, size)
                * p_ScV
                * (z_ScV - logz_Sc1 + _chunk(entropy, i, size)[..., None])
            )
        dz_ScV = (dz_ScV / temperature).astype(x.dtype)
        dx = lax.dynamic_update_slice_in_dim(
            dx, jnp.einsum("ScV,VD->ScD", dz_ScV, head_VD), i * size, axis=1
        )
        return dx, dhead_SVD + jnp.einsum(
            "ScV,ScD->SVD", dz_ScV, x_ScD, preferred_element_type=jnp.float32
        )

    S = x.shape[0]
    start = (jnp.zeros_like(x), jnp.zeros((S, *head_VD.shape), jnp.float32))
    dx, dhead_SVD = lax.fori_loop(0, _num_chunks(wanted_SN, size), one, start)
    dx_SND = jnp.take_along_axis(dx, back_SN[..., None], axis=1)
    # what is sent between parts is in the compute dtype, as the other weights' gradients are
    if S > 1:
        dhead_SVD = dhead_SVD.astype(x.dtype)
    dhead_VD = sharding.scattered(dhead_SVD, how.mesh).astype(how.head_dtype)
    return dx_SND, dhead_VD, None, None, jnp.zeros_like(temperature)


_logps.defvjp(_forward, _backward)


def _scores(x_ScD: jax.Array, head_VD: jax.Array, temperature: jax.Array, vocab: int) -> jax.Array:
    z = jnp.einsum("ScD,VD->ScV", x_ScD, head_VD, preferred_element_type=jnp.float32) / temperature
    V = head_VD.shape[0]
    return z if vocab == V else jnp.where((jnp.arange(V) < vocab)[None, None], z, PADDING_LOGIT)


def _num_chunks(wanted_SN: jax.Array, size: int) -> jax.Array:
    """As many as the fullest part needs: all parts make the same number of turns."""
    return -(-wanted_SN.sum(axis=1, dtype=jnp.int32).max() // size)


def _take(x: jax.Array, order_SN: jax.Array, size: int) -> jax.Array:
    """The positions in this order, padded to whole chunks."""
    index = order_SN.reshape(*order_SN.shape, *(1,) * (x.ndim - 2))
    taken = jnp.take_along_axis(x, index, axis=1)
    padding = -x.shape[1] % size
    return jnp.pad(taken, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))


def _chunk(x: jax.Array, i: jax.Array, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, i * size, size, axis=1)
