"""Ablation: context distillation without the context ratio mask, on DeepScaler-5K.

Every templated token counts.

Command: python -m p2o_jax.main --config configs/paper/ablations/plain_ratio.py
    --workdir runs/plain_ratio
Hardware, data and evaluation: as configs/paper/deepscaler_self.py.
Time: as there.
Score: unknown.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).parents[1] / "deepscaler_self.py"))["get_config"]()
    c.distill.mode = "plain"
    return c
