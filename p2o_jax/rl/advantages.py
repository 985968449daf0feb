"""Group-relative advantages (algorithm step 5; GRPO, arXiv 2402.03300, section 4.1)."""

import numpy as np
from jaxtyping import Float, Shaped

from p2o_jax.config import Adv


def group_advantages(reward_QG: Float[np.ndarray, "Q G"], cfg: Adv) -> Float[np.ndarray, "Q G"]:
    """(r - mean) / (std + 1e-6) within each group, std with Bessel's correction; float32. A group of one has mean 0 and std 1."""
    reward = reward_QG.astype(np.float32)
    if reward.shape[1] == 1:
        return reward
    centred = reward - reward.mean(axis=1, keepdims=True)
    if not cfg.normalize_by_std:
        return centred
    return centred / (reward.std(axis=1, ddof=1, keepdims=True) + np.float32(1e-6))


def zero_advantage(advantage_QG: Float[np.ndarray, "Q G"]) -> Shaped[np.ndarray, "Q"]:
    """Which groups teach nothing: all of their advantages are 0."""
    return np.all(advantage_QG == 0, axis=1)
