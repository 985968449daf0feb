"""Ablation: the same template for all rollouts of a question's group.

Command: python -m p2o_jax.main --config configs/paper/ablations/same_template.py
    --workdir runs/same_template
Requirements: as configs/paper/deepscaler_teacher.py.
Hardware, data and evaluation: as configs/paper/deepscaler_self.py.
Time: as there.
Score: the paper's average is 64.2 (with a template drawn per rollout: 65.2).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).parents[1] / "deepscaler_teacher.py"))["get_config"]()
    c.assign.same_template_in_group = True
    return c
