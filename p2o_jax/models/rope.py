"""Rotary position embeddings in the half-split layout of Hugging Face checkpoints; angles in
float32.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from p2o_jax.models.spec import Rope


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Returns the radians per position of each channel pair, float64: head_dim / 2 of them, or
    fewer if only a part of the channels is rotated.
    """
    head_dim = int(head_dim * rope.partial)
    freq = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        return freq / rope.factor
    if rope.kind == "llama3":
        return _llama3(freq, rope)
    if rope.kind == "yarn":
        return _yarn(freq, rope, head_dim)
    if rope.kind == "longrope":
        return freq / np.array(rope.long_factors if rope.long else rope.short_factors)
    return freq


def attention_scale(rope: Rope) -> float:
    """Returns the factor on cos and sin (the attention temperature of YaRN and longrope); 1 for
    other kinds.
    """
    if rope.kind == "yarn":
        return rope.attention_factor or 0.1 * math.log(max(rope.factor, 1.0)) + 1.0
    if rope.kind == "longrope":
        usual = math.sqrt(
            1 + math.log(max(rope.factor, 1.0)) / math.log(rope.original_max_positions)
        )
        return rope.attention_factor or usual
    return 1.0


class Rotation(NamedTuple):
    """What places queries and keys at their positions."""

    cos_BTc: jax.Array
    sin_BTc: jax.Array
    query_scale_BT: jax.Array | None = None  # multiplies queries


def rotation(rope: Rope, head_dim: int, position_BT: Int[Array, "B T"]) -> Rotation:
    """Returns the rotation of every position, float32."""
    if not rope.query_beta:
        return Rotation(*angles(rope, head_dim, position_BT))
    times = jnp.floor(position_BT / rope.original_max_positions)
    return Rotation(*angles(rope, head_dim, position_BT), 1 + rope.query_beta * jnp.log1p(times))


def angles(
    rope: Rope, head_dim: int, position_BT: Int[Array, "B T"]
) -> tuple[Float[Array, "B T c"], Float[Array, "B T c"]]:
    """Returns cos and sin of every position's rotation, float32, one for each channel pair."""
    freq = jnp.asarray(inverse_frequencies(rope, head_dim), jnp.float32)
    angle = position_BT[..., None].astype(jnp.float32) * freq[None, None]
    scale = attention_scale(rope)
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def rotate(
    x_BTHC: Float[Array, "B T H C"], cos_BTc: Float[Array, "B T c"], sin_BTc: Float[Array, "B T c"]
) -> Float[Array, "B T H C"]:
    """Rotates x to its positions, float32. Of the rotated channels, which are the first 2 c,
    channel i is paired with channel i + c.
    """
    rotated = 2 * cos_BTc.shape[-1]
    turned, *rest = (
        [x_BTHC] if rotated == x_BTHC.shape[-1] else jnp.split(x_BTHC, [rotated], axis=-1)
    )
    a, b = jnp.split(turned.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTc[:, :, None], sin_BTc[:, :, None]
    parts = [a * cos - b * sin, b * cos + a * sin, *(x.astype(jnp.float32) for x in rest)]
    return jnp.concatenate(parts, axis=-1)


def _llama3(freq: np.ndarray, rope: Rope) -> np.ndarray:
    """Scales frequencies as Llama 3.1 does: long wavelengths by the factor, short ones not, with a
    smooth transition.
    """
    wavelength = 2 * math.pi / freq
    low, high = (
        rope.original_max_positions / rope.low_freq_factor,
        rope.original_max_positions / rope.high_freq_factor,
    )
    smooth = (rope.original_max_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * freq / rope.factor + smooth * freq
    return np.where(
        wavelength > low, freq / rope.factor, np.where(wavelength < high, freq, between)
    )


def _yarn(freq: np.ndarray, rope: Rope, head_dim: int) -> np.ndarray:
    """Scales frequencies by YaRN (arXiv 2309.00071): channels with few rotations by the factor,
    fast ones not.
    """

    def dimension(rotations: float) -> float:
        return (
            head_dim
            * math.log(rope.original_max_positions / (rotations * 2 * math.pi))
            / (2 * math.log(rope.theta))
        )

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0, 1)
    return freq / rope.factor * ramp + freq * (1 - ramp)
