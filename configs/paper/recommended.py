"""The paper's P²O, Self-Ref, with the preset recommended instead of the released code's behaviour.

It has mixed groups, hardness measured on plain rollouts, a leak guard, and a budget that charges
all rollouts (PRESETS in p2o_jax/config/schema.py).

Command: python -m p2o_jax.main --config configs/paper/recommended.py --workdir runs/recommended
Hardware, data and evaluation: as configs/paper/deepscaler_self.py.
Time: about 40 hours on 8 H100, estimated as there.
Score: unknown.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("deepscaler_self.py")))["get_config"]()
    c.preset = "recommended"
    return c
