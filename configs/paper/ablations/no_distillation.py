"""Ablation: no context distillation. Updates are made on the templated prompts.

Command: python -m p2o_jax.main --config configs/paper/ablations/no_distillation.py
    --workdir runs/no_distillation
Requirements: as configs/paper/deepscaler_teacher.py.
Hardware, data and evaluation: as configs/paper/deepscaler_self.py.
Time: as there.
Score: the paper's average is 55.6 (with distillation 65.2).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).parents[1] / "deepscaler_teacher.py"))["get_config"]()
    c.distill.mode = "off"
    c.optim.row_tokens = 17408  # the longest template, question and response
    return c
