"""A small run of every part: pretraining, two epochs, a prompt phase, evaluation.

It shows that everything runs, not that it learns.

Command: python -m p2o_jax.main --config configs/smoke.py
Hardware: 2 CPU cores.
Time: under a minute.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("world_p2o.py")))["get_config"]()
    c.world.steps = 150
    c.world.width = 64
    c.world.layers = 2
    c.world.mlp = 128
    c.world.hard_per_family = 2
    c.world.easy_per_family = 6
    c.world.heldout_per_family = 8
    c.rollout.questions = 10
    c.rollout.group_size = 4
    c.optim.minibatch_questions = 10
    c.gepa.max_metric_calls = 60
    c.gepa.dev_size = 6
    c.train.epochs = 2
    c.train.max_generated_tokens = 0
    c.eval.every_steps = 2
    return c
