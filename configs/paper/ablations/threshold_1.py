"""Ablation: only questions without any success are hard (the paper's tau = 1), on DeepMath-5K.

Command: python -m p2o_jax.main --config configs/paper/ablations/threshold_1.py
    --workdir runs/threshold_1
Data, hardware and evaluation: as configs/paper/deepmath_self.py.
Time: as there, or less.
Score: the paper's average is 62.1 (at most one success: 64.2).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).parents[1] / "deepmath_self.py"))["get_config"]()
    c.mining.max_successes = 0
    return c
