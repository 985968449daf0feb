"""GEPA alone, without training: the held-out questions are asked under the best template.

Command: python -m p2o_jax.main --config configs/baselines/gepa_only.py
Hardware: 2 CPU cores, 2 GB of memory.
Time: under a minute, and about 3 minutes for pretraining the base model on first use.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).parents[1] / "world_p2o.py"))["get_config"]()
    c.gepa.schedule = "first"
    c.gepa.max_metric_calls = 3000
    c.gepa.patience = 0
    c.train.epochs = 0
    c.eval.template = "best"
    c.eval.every_steps = 0
    return c
