"""GRPO on the toy world, to the same 120,000 generated tokens as world_p2o.

Command: python -m p2o_jax.main --config configs/world_grpo.py
Hardware: 2 CPU cores, 2 GB of memory.
Time: about 1 minute, and about 3 minutes for pretraining the base model on first use.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("world_p2o.py")))["get_config"]()
    c.gepa.enabled = False
    return c
