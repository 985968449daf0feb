"""Ablation: one round of reflection instead of GEPA, on DeepMath-5K.

It makes as many proposals as heavy_4 has candidates, all from the empty template.

Command: python -m p2o_jax.main --config configs/paper/ablations/one_reflection.py
    --workdir runs/one_reflection
Data, hardware and evaluation: as configs/paper/deepmath_self.py.
Time: less than there.
Score: the paper's average is 50.4 (GEPA: 64.2).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).parents[1] / "deepmath_self.py"))["get_config"]()
    c.gepa.max_iterations = 1
    c.gepa.parents = 72
    c.gepa.fill_width = True
    return c
