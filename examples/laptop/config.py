"""GRPO against P²O on the laptop: what `python -m examples.laptop` runs on its model and questions.

Command: python -m examples.laptop
Hardware: 2 CPU cores, 10 GB of memory.
Time: 5 to 10 minutes.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    c = runpy.run_path(str(HERE.parents[1] / "configs" / "laptop.py"))["get_config"]()
    c.reward.kind = "exact"
    c.gepa.seed_templates = str(HERE / "templates.txt")
    c.arms = ("grpo gepa.enabled=false", "p2o")
    return c
