"""How tokens are drawn, for each use of the sampler: the only place that makes a
`types.SamplingParams` of settings.

`rollout.top_k`, `top_p` and `min_p` hold for all that the model writes, whatever its temperature:
rollouts that are trained on, evaluation, candidates of GEPA, and reflection, which would otherwise
be drawn from tails that no rollout has. (An endpoint that reflects gets its own in
`api.extra_body`.) At temperature 0 they make no difference.
"""

from p2o_jax.config import Config
from p2o_jax.types import SamplingParams


def training(cfg: Config) -> SamplingParams:
    """Of rollouts that are trained on."""
    return at(cfg, cfg.rollout.temperature)


def evaluation(cfg: Config) -> SamplingParams:
    """Of evaluation on held-out questions during training."""
    return at(cfg, cfg.eval.temperature)


def candidates(cfg: Config) -> SamplingParams:
    """Of GEPA's evaluation of templates."""
    assert cfg.gepa.temperature is not None, "config.gepa must be resolved"
    return at(cfg, cfg.gepa.temperature)


def reflection(cfg: Config) -> SamplingParams:
    """Of new templates, where the model writes them."""
    return at(cfg, cfg.gepa.reflect_temperature, cfg.gepa.reflect_new_tokens)


def at(cfg: Config, temperature: float, max_new_tokens: int = 0) -> SamplingParams:
    """Of any text at this temperature; as long as a rollout at most, unless `max_new_tokens`
    says otherwise.
    """
    r = cfg.rollout
    return SamplingParams(
        temperature, max_new_tokens or r.max_new_tokens, r.top_k, r.top_p, r.min_p
    )
