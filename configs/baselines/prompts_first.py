"""Prompt evolution before training: one GEPA phase on all questions, with the base model.

Its templates are used in all epochs.

Command: python -m p2o_jax.main --config configs/baselines/prompts_first.py
Hardware: 2 CPU cores, 2 GB of memory.
Time: about 2 minutes, and about 3 minutes for pretraining the base model on first use.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).parents[1] / "world_p2o.py"))["get_config"]()
    c.gepa.schedule = "first"
    c.gepa.max_metric_calls = 3000  # the budget of ten of P²O's phases
    c.gepa.patience = 0
    return c
