"""How tokens are drawn, for each use of the sampler: the only place that makes a `records.Sampling` of settings.

`rollout.top_k`, `top_p` and `min_p` hold for all that the model writes, whatever its temperature: rollouts that are trained on,
evaluation, candidates of GEPA, and reflection, which would otherwise be drawn from tails that no rollout has. (An endpoint that
reflects gets its own in `api.extra_body`.) At temperature 0 they make no difference.
"""

from p2o_jax.config import Config
from p2o_jax.types import Sampling


def training(cfg: Config) -> Sampling:
    """Of rollouts that are trained on."""
    return at(cfg, cfg.rollout.temperature)


def evaluation(cfg: Config) -> Sampling:
    """Of evaluation on held-out questions during training."""
    return at(cfg, cfg.eval.temperature)


def candidates(cfg: Config) -> Sampling:
    """Of GEPA's evaluation of templates."""
    assert cfg.gepa.temperature is not None, "config.gepa must be resolved"
    return at(cfg, cfg.gepa.temperature)


def reflection(cfg: Config) -> Sampling:
    """Of new templates, where the model writes them."""
    return at(cfg, cfg.gepa.reflect_temperature, cfg.gepa.reflect_new_tokens)


def at(cfg: Config, temperature: float, max_new_tokens: int = 0) -> Sampling:
    """Of any text at this temperature; as long as a rollout at most, unless `max_new_tokens` says otherwise."""
    r = cfg.rollout
    return Sampling(temperature, max_new_tokens or r.max_new_tokens, r.top_k, r.top_p, r.min_p)
