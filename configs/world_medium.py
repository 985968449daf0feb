"""GRPO against P²O on the medium toy world, whose strategies have three parts.

Command: python -m p2o_jax.main --config configs/world_medium.py
Hardware: 2 CPU cores, 2 GB of memory.
Time: about 2 minutes, and about 5 minutes for pretraining the base model on first use.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("world_p2o.py")))["get_config"]()
    c.arms = ("grpo gepa.enabled=false", "p2o")
    c.world.size = "medium"
    c.world.steps = 3000
    c.data.eval_path = "world,longer=world:longer,wording=world:wording,untrained=world:untrained"
    c.rollout.max_new_tokens = 44
    c.optim.lr = 4e-4
    c.gepa.max_metric_calls = 400
    c.train.max_generated_tokens = 80_000
    return c
