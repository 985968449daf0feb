"""Settings of a run: schema and defaults, rules between them, config files and flags."""

from p2o_jax.config.schema import *  # noqa: F403
