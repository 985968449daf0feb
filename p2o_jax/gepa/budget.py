"""Budget of a phase, in rollouts (algorithm step 3f)."""

import math

from p2o_jax import config

# Candidates that each auto level aims to try.
LEVELS = {
    "light": 6,
    "medium": 12,
    "heavy": 18,
    "heavy_2": 36,
    "heavy_3": 54,
    "heavy_4": 72,
    "heavy_16": 288,
}


def auto(level: str, num_dev: int) -> int:
    """Returns the rollouts of an auto level: V + 5n + 35N + (⌊(N+1)/5⌋ + 1 + [N < 5])·V, with N =
    ⌊max(4·log2 n, 1.5n)⌋, V = `num_dev`.
    """
    candidates = LEVELS[level]
    trials = int(max(4 * math.log2(candidates), 1.5 * candidates))
    full_evals = (trials + 1) // 5 + 1 + (trials < 5)
    return num_dev + 5 * candidates + 35 * trials + full_evals * num_dev


def total(cfg: config.GepaConfig, num_train: int, num_dev: int) -> int:
    """Returns the rollouts of a phase: a fixed count, a number of passes over train and dev, or an
    auto level.
    """
    if cfg.budget == "calls":
        return cfg.max_metric_calls
    if cfg.budget == "full_evals":
        return cfg.max_full_evals * (num_train + num_dev)
    return auto(cfg.budget, num_dev)
