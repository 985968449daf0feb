"""Metrics of scoring and of updates; their names are listed in tracking.metric_names.METRICS.

A mean or share over nothing is absent, not 0.
"""

from collections.abc import Sequence

import numpy as np

from p2o_jax import config
from p2o_jax.rl import distill

Stats = dict[str, float]
_OPTIONAL = ("kl_loss", "self_distill_loss")  # terms of the loss that a run may have


def distill_stats(
    rho: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    raised: Sequence[bool],
    num_tokens: int,
    cfg: config.DistillConfig,
) -> Stats:
    """Returns distill/* over the templated tokens.

    Args:
        rho: density ratios, an array per response.
        weights: the weights of the tokens.
        raised: for each response, whether its advantage is positive.
        num_tokens: all trained tokens.
        cfg: bounds on rho.
    """
    if not rho:
        return {}
    ratio, weight = np.concatenate(rho), np.concatenate(weights).astype(np.float64)
    low, mid, high = np.quantile(ratio, [0.05, 0.5, 0.95])
    bound_low, bound_high = distill.bounds(cfg)
    of_right = [w == 0 for w, up in zip(weights, raised, strict=True) if up]
    return {
        "distill/frac_masked_low": float((ratio < bound_low).mean()),
        "distill/frac_masked_high": float((ratio > bound_high).mean()),
        "distill/ratio_p05": float(low),
        "distill/ratio_p50": float(mid),
        "distill/ratio_p95": float(high),
        "distill/effective_sample_frac": float(
            weight.sum() ** 2 / max((weight**2).sum() * weight.size, 1e-30)
        ),
        "distill/frac_templated_tokens": ratio.size / num_tokens,
        **(
            {"distill/frac_right_masked": float(np.concatenate(of_right).mean())}
            if of_right
            else {}
        ),
    }


def gap_stats(gap: Sequence[np.ndarray]) -> Stats:
    """Returns the log-prob gap between sampler and learner; `gap` holds absolute differences, an
    array per response.
    """
    if not gap:
        return {}
    all_gaps = np.concatenate(gap)
    return _gap(float(all_gaps.mean()), float(all_gaps.max()), all_gaps.size)


def rollout_weight_stats(weights: Sequence[np.ndarray], cap: float) -> Stats:
    """Returns the mean importance weight of learner over sampler, and the shares of weights at the
    cap and of masked ones.
    """
    if not weights:
        return {}
    weight = np.concatenate(weights)
    return {
        "train/rollout_is_mean": float(weight.mean()),
        "train/frac_rollout_is_capped": float((weight >= cap).mean()),
        "train/frac_rollout_is_masked": float((weight == 0).mean()),
    }


def update_stats(sums: Stats, computed_tokens: int) -> Stats:
    """Returns train/* from the sums of an update: means over trained tokens, and the sampler gap
    over `fresh` tokens.
    """
    stats = {
        f"train/{name}": sums[name]
        for name in ("loss", "policy_loss", "grad_norm", "update_norm", "param_norm")
    }
    stats |= {"train/bad_updates": sums["bad"], "train/trained_tokens": sums["tokens"]}
    if tokens := sums["tokens"]:
        stats |= {f"train/{name}": sums[name] / tokens for name in ("approx_kl", "entropy")}
        stats |= {
            "train/frac_clipped": sums["clipped"] / tokens,
            "train/frac_dual_clipped": sums["dual_clipped"] / tokens,
        }
        stats |= {f"train/{name}": sums[name] for name in _OPTIONAL if name in sums}
    if computed_tokens:
        stats["perf/frac_row_tokens_real"] = sums["real_tokens"] / computed_tokens
    if sums["fresh_tokens"]:
        stats |= _gap(sums["gap"] / sums["fresh_tokens"], sums["max_gap"], sums["fresh_tokens"])
    return stats | router_stats(sums)


def router_stats(sums: Stats) -> Stats:
    """Returns train/router_* from the sums of an update; empty for models without experts."""
    if not sums.get("router_tokens"):
        return {}
    recorded = sums["router_recorded"]
    differ = {"train/router_frac_differ": sums["router_differ"] / recorded} if recorded else {}
    return {
        "train/router_balance": sums["router_balance"],
        "train/router_entropy": sums["router_entropy"] / sums["router_tokens"],
        "train/router_max_load": sums["router_max_load"],
        **differ,
    }


def _gap(mean: float, largest: float, tokens: float) -> Stats:
    return {
        "train/logprob_gap_mean": mean,
        "train/logprob_gap_max": largest,
        "train/logprob_gap_tokens": float(tokens),
    }
