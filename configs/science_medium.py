"""The base config of the medium suites of benchmarks/science, to 80,000 generated tokens.

Command: python -m benchmarks.science --suite paper-medium
Command for this arm alone: python -m p2o_jax.main --config configs/science_medium.py
Hardware: 1 CPU core, 2 GB of memory.
Time: about 1 minute per arm, and about 5 minutes for pretraining a base model on first use.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    science = runpy.run_path(str(Path(__file__).with_name("science.py")))
    c = science["measured"]("world_medium.py")
    c.arms = ()
    # as it was when its rows were made
    c.eval.every_steps = 6
    c.optim.minibatch_questions = 16
    c.gepa.schedule = "every_epoch"
    c.gepa.carry_over = 0
    return c
