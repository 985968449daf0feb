"""GRPO with larger groups: G' = 11 where P²O has G = 8, as much again as P²O's prompt phases add
(41 %).

Command: python -m p2o_jax.main --config configs/baselines/grpo_larger_groups.py
Hardware: 2 CPU cores, 2 GB of memory. Time: about 1 minute, and 3 minutes more for pretraining the
    base model on first use.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).parents[1] / "world_p2o.py"))["get_config"]()
    c.gepa.enabled = False
    c.rollout.group_size = 11
    return c
