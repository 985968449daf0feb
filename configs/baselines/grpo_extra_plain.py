"""GRPO with an extra plain group for each question that was hard in the last epoch.

These are P²O's extra rollouts without its templates.

Command: python -m p2o_jax.main --config configs/baselines/grpo_extra_plain.py
Hardware: 2 CPU cores, 2 GB of memory.
Time: about 1 minute, and about 3 minutes for pretraining the base model on first use.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).parents[1] / "world_p2o.py"))["get_config"]()
    c.gepa.enabled = False
    c.mining.extra_plain_groups = 1
    return c
