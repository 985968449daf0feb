"""Named randomness: keys that depend only on the seed and on names."""

import hashlib

import jax
import numpy as np


def key(seed: int, *names: str | int) -> jax.Array:
    """A JAX key that depends only on the seed and the names, as in key(0, "rollout", step)."""
    words = np.frombuffer(
        hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest(), np.uint32
    )
    base = jax.random.key(seed)
    for word in words:
        base = jax.random.fold_in(base, word)
    return base


def name_words(names: list[str]) -> np.ndarray:
    """Two uint32 words per name, [N, 2], to be folded into a call's key for each rollout."""
    digests = [
        hashlib.blake2b(n.encode("utf-8", "surrogatepass"), digest_size=8).digest() for n in names
    ]
    return np.frombuffer(b"".join(digests), np.uint32).reshape(len(names), 2)
