"""Context distillation: what a token sampled under a template weighs in the update on the plain
prompt (algorithm step 6).
"""

import numpy as np
from jaxtyping import Float

from p2o_jax.config import DistillConfig


def token_weights(
    logp_old_plain_R: Float[np.ndarray, "R"],
    logp_old_templated_R: Float[np.ndarray, "R"],
    cfg: DistillConfig,
) -> Float[np.ndarray, "R"]:
    """w of each token: 1 inside the bounds on rho = pi_old(y | x) / pi_old(y | T(x, z)); outside 0
    (hard) or bound / rho (soft).

    With mode=truncated min(rho, cap): an importance weight of bounded variance. ▲ With
    mode=transfer exp(min(d, 0) / scale) for the whole response, d its mean log rho: what leans on
    the template counts less (arXiv 2604.00698). In all other modes 1. A constant to the gradient.
    """
    rho = density_ratio(logp_old_plain_R, logp_old_templated_R)
    if cfg.mode == "truncated":
        return np.minimum(rho, np.float32(cfg.cap))
    if cfg.mode == "transfer":
        return np.full_like(
            rho, transfer(logp_old_plain_R, logp_old_templated_R, cfg.transfer_scale)
        )
    if cfg.mode != "ratio_mask":
        return np.ones_like(rho)
    low, high = np.float32(1 - cfg.eps_low), np.float32(1 + cfg.eps_high)
    if cfg.clip == "hard":
        return ((rho >= low) & (rho <= high)).astype(np.float32)
    return np.where(rho < low, low / rho, np.where(rho > high, high / rho, np.float32(1)))


def transfer(
    logp_plain_R: Float[np.ndarray, "R"], logp_templated_R: Float[np.ndarray, "R"], scale: float
) -> float:
    """exp(min(d, 0) / scale), d the mean of a response's log rho: 1 for one that does not lean
    on its template (arXiv 2604.00698).
    """
    leaning = (
        float(np.mean(logp_plain_R - logp_templated_R, dtype=np.float64))
        if len(logp_plain_R)
        else 0.0
    )
    return float(np.exp(min(leaning, 0.0) / scale))


def density_ratio(
    logp_old_plain_R: Float[np.ndarray, "R"], logp_old_templated_R: Float[np.ndarray, "R"]
) -> Float[np.ndarray, "R"]:
    """rho of each token, float32, its logarithm held within +-20."""
    return np.exp(np.clip(logp_old_plain_R - logp_old_templated_R, -20, 20)).astype(np.float32)


def rollout_weights(
    logp_learner_R: Float[np.ndarray, "R"],
    logp_sampler_R: Float[np.ndarray, "R"],
    level: str,
    cap: float,
) -> Float[np.ndarray, "R"]:
    """min(pi_learner / pi_sampler, cap) on the prompt that was sampled on, of each token or of the
    whole response; float32.

    Truncated importance sampling for what the sampler's numerics do to its distribution. A constant
    to the gradient; 1 for none.
    """
    log_ratio = logp_learner_R - logp_sampler_R
    if level == "none":
        return np.ones_like(log_ratio)
    if level == "sequence":
        log_ratio = np.full_like(log_ratio, log_ratio.sum())
    return np.minimum(np.exp(np.clip(log_ratio, -20, 20)), cap).astype(np.float32)
