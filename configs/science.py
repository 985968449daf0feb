"""The base config of benchmarks/science: P²O on the toy world, to 80,000 generated tokens.

Command: python -m benchmarks.science --suite dial
Command for this arm alone: python -m p2o_jax.main --config configs/science.py
Hardware: 1 CPU core, 2 GB of memory.
Time: about 30 seconds per arm, and about 3 minutes for pretraining a base model on first use.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return measured("world_p2o.py")


def measured(config: str) -> ConfigDict:
    """The config of a file in this folder, with a budget and evaluations for the benchmark."""
    c = runpy.run_path(str(Path(__file__).with_name(config)))["get_config"]()
    c.eval.every_steps = 2
    c.checkpoint.keep = 1
    c.train.num_samples_logged = 0
    c.train.max_generated_tokens = 80_000
    return c
