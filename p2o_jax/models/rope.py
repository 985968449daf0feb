"""Rotary position embeddings in the half-split layout of Hugging Face checkpoints; angles in
float32.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from p2o_jax.models.spec import Rope


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Returns the radians per position of each of the head_dim / 2 channel pairs, float64."""
    freq = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        return freq / rope.factor
    if rope.kind == "llama3":
        return _llama3(freq, rope)
    if rope.kind == "yarn":
        return _yarn(freq, rope, head_dim)
    return freq


def attention_scale(rope: Rope) -> float:
    """Returns the factor on cos and sin (YaRN's attention temperature); 1 for other kinds."""
    if rope.kind != "yarn":
        return 1.0
    return rope.attention_factor or 0.1 * math.log(max(rope.factor, 1.0)) + 1.0


def angles(
    rope: Rope, head_dim: int, position_BT: Int[Array, "B T"]
) -> tuple[Float[Array, "B T c"], Float[Array, "B T c"]]:
    """Returns cos and sin of every position's rotation, float32, [B, T, C/2]."""
    freq = jnp.asarray(inverse_frequencies(rope, head_dim), jnp.float32)
    angle = position_BT[..., None].astype(jnp.float32) * freq[None, None]
    scale = attention_scale(rope)
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def rotate(
    x_BTHC: Float[Array, "B T H C"], cos_BTc: Float[Array, "B T c"], sin_BTc: Float[Array, "B T c"]
) -> Float[Array, "B T H C"]:
    """Rotates x to its positions. Channel i is paired with channel i + C/2."""
    a, b = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTc[:, :, None], sin_BTc[:, :, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHC.dtype)


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
