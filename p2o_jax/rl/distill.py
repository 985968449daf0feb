"""Context distillation: weights of tokens that were sampled under a template, in the update on the
plain prompt (algorithm step 6).
"""

import numpy as np
from jaxtyping import Float

from p2o_jax.config import DistillConfig


def distill_weights(
    logp_old_plain_R: Float[np.ndarray, "R"],
    logp_old_templated_R: Float[np.ndarray, "R"],
    cfg: DistillConfig,
) -> Float[np.ndarray, "R"]:
    """Returns the weight w of each token, a constant to the gradient, from rho = pi_old(y | x) /
    pi_old(y | T(x, z)).

    mode=ratio_mask: 1 where rho is within its bounds; outside, 0 (clip=hard) or bound / rho
    (clip=soft). mode=truncated: min(rho, cap), an importance weight of bounded variance. Other
    modes: 1.
    """
    rho = density_ratio(logp_old_plain_R, logp_old_templated_R)
    if cfg.mode == "truncated":
        return np.minimum(rho, np.float32(cfg.cap))
    if cfg.mode != "ratio_mask":
        return np.ones_like(rho)
    low, high = map(np.float32, bounds(cfg))
    if cfg.clip == "hard":
        return ((rho >= low) & (rho <= high)).astype(np.float32)
    return np.where(rho < low, low / rho, np.where(rho > high, high / rho, np.float32(1)))


def bounds(cfg: DistillConfig) -> tuple[float, float]:
    """Returns the bounds on rho outside of which tokens count less or not at all."""
    if cfg.mode == "truncated":
        return 0.0, cfg.cap
    assert cfg.eps_low is not None, "config.distill must be resolved"
    return 1 - cfg.eps_low, 1 + cfg.eps_high


def density_ratio(
    logp_old_plain_R: Float[np.ndarray, "R"], logp_old_templated_R: Float[np.ndarray, "R"]
) -> Float[np.ndarray, "R"]:
    """Returns rho of each token, float32, with log rho clipped to [-20, 20]."""
    return np.exp(np.clip(logp_old_plain_R - logp_old_templated_R, -20, 20)).astype(np.float32)


def importance_weights(
    logp_learner_R: Float[np.ndarray, "R"],
    logp_sampler_R: Float[np.ndarray, "R"],
    level: str,
    cap: float,
) -> Float[np.ndarray, "R"]:
    """Returns r = pi_learner / pi_sampler on the sampled prompt, per token or per response, at most
    `cap`, float32; 1 for level "none".

    Truncated importance sampling, which corrects for the numerical differences between sampler and
    learner. The levels that end in _mask return 0 in place of an r outside of [1 / cap, cap], and
    others as they are (IcePop, arXiv 2510.18855; its bounds are .5 and 5). A constant to the
    gradient.
    """
    log_ratio = logp_learner_R - logp_sampler_R
    if level == "none":
        return np.ones_like(log_ratio)
    if level.startswith("sequence"):
        log_ratio = np.full_like(log_ratio, log_ratio.sum())
    ratio = np.exp(np.clip(log_ratio, -20, 20)).astype(np.float32)
    if level.endswith("_mask"):
        return np.where((ratio < 1 / cap) | (ratio > cap), np.float32(0), ratio)
    return np.minimum(ratio, np.float32(cap))
