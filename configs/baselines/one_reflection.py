"""P²O with one round of reflection instead of GEPA: all proposals start from the empty template.

Command: python -m p2o_jax.main --config configs/baselines/one_reflection.py
Hardware: 2 CPU cores, 2 GB of memory.
Time: about 2 minutes, and about 3 minutes for pretraining the base model on first use.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).parents[1] / "world_p2o.py"))["get_config"]()
    c.gepa.max_iterations = 1
    c.gepa.parents = 16  # the number that GEPA's budget allows per epoch
    return c
