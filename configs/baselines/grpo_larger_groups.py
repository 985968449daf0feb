"""GRPO with larger groups: G = 11 instead of P²O's 8.

The additional rollouts match those of P²O's prompt phases (41 %).

Command: python -m p2o_jax.main --config configs/baselines/grpo_larger_groups.py
Hardware: 2 CPU cores, 2 GB of memory.
Time: about 1 minute, and about 3 minutes for pretraining the base model on first use.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).parents[1] / "world_p2o.py"))["get_config"]()
    c.gepa.enabled = False
    c.rollout.group_size = 11
    return c
