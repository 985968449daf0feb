"""Group-relative advantages, and the rewards they compare (algorithm step 5; GRPO, arXiv
2402.03300, section 4.1).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

from p2o_jax.config import AdvConfig, Config
from p2o_jax.types import Rollout


def of_rollouts(rollouts: Sequence[Rollout], cfg: Config) -> Float[np.ndarray, "Q G"]:
    """Returns the advantage of each rollout. `rollouts` holds whole groups, one question after
    another.
    """
    assert_groups(rollouts, cfg.rollout.group_size)
    reward_N = np.array([r.verdict.answer_score for r in rollouts], np.float32)
    if cfg.loss.overlong == "penalty":
        length_N = np.array([len(r.completion.token_ids) for r in rollouts])
        reward_N += overlong_penalty(
            length_N,
            cfg.rollout.max_new_tokens,
            cfg.loss.overlong_buffer,
            cfg.loss.overlong_penalty,
        )
    return group_advantages(reward_N.reshape(-1, cfg.rollout.group_size), cfg.adv)


def assert_groups(rollouts: Sequence[Rollout], size: int) -> None:
    """Asserts that rollouts come in groups of `size`, one question each, with a log-prob for every
    token.
    """
    assert len(rollouts) % size == 0, f"{len(rollouts)} rollouts do not form groups of {size}"
    for first in range(0, len(rollouts), size):
        ids = sorted({r.prompt.question.id for r in rollouts[first : first + size]})
        assert len(ids) == 1, f"rollouts {first} to {first + size - 1} mix the questions {ids}"
    for r in rollouts:
        tokens, logps = len(r.completion.token_ids), len(r.completion.logp_R)
        assert tokens == logps, f"rollout {r.prompt.name} has {tokens} tokens and {logps} log-probs"


def group_advantages(
    reward_QG: Float[np.ndarray, "Q G"], cfg: AdvConfig
) -> Float[np.ndarray, "Q G"]:
    """Returns (r - mean) / (std + 1e-6) within each group, float32; std with Bessel's correction.

    A group of one has mean 0 and std 1. Equal rewards give exactly 0: their float32 mean may differ
    from them in the last place, which the division by a tiny std would amplify. dr_grpo (arXiv
    2503.20783) omits the division. rloo (arXiv 2402.14740) subtracts the mean of the group's other
    rewards. maxrl (arXiv 2602.02710) divides by the mean in place of std: with rewards 0 and 1 the
    gradient is the mean of grad log p over successes less that over all rollouts, an estimate of
    the gradient of log P(success), truncated to G terms of its series in P(failure).
    """
    reward = reward_QG.astype(np.float32)
    size = reward.shape[1]
    if size == 1:
        return reward
    equal = reward.max(axis=1, keepdims=True) == reward.min(axis=1, keepdims=True)
    mean = reward.mean(axis=1, keepdims=True)
    centred = np.where(equal, np.float32(0), reward - mean)
    if cfg.kind == "maxrl":
        return centred / (mean + np.float32(1e-6))
    if cfg.kind == "dr_grpo":
        return centred
    if cfg.kind == "rloo":
        return centred * np.float32(size / (size - 1))
    return centred / (reward.std(axis=1, ddof=1, keepdims=True) + np.float32(1e-6))


def overlong_penalty(
    length_N: Shaped[np.ndarray, "N"], max_tokens: int, buffer: int, penalty: float
) -> Float[np.ndarray, "N"]:
    """Returns what to add to the reward of responses of these lengths: 0 before the buffer, falling
    linearly to -penalty at its end, float32.

    Soft overlong punishment of DAPO (arXiv 2503.14476, equation 13).
    """
    over = np.clip(length_N - (max_tokens - buffer), 0, buffer)
    return (-penalty * over / buffer).astype(np.float32)


def zero_advantage(advantage_QG: Float[np.ndarray, "Q G"]) -> Shaped[np.ndarray, "Q"]:
    """Returns which groups have no policy gradient because all of their advantages are 0."""
    return np.all(advantage_QG == 0, axis=1)
