"""GRPO against P²O on the toy world, with equal generated tokens: the README's first command.

Command: python -m p2o_jax.main --config configs/quickstart.py
Hardware: 2 CPU cores, 2 GB of memory.
Time: about 5 minutes, including the pretraining of the base model.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("world_p2o.py")))["get_config"]()
    c.arms = ("grpo gepa.enabled=false", "p2o")
    return c
