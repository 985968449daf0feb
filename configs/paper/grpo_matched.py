"""GRPO with G = 8, which matches the rollouts of P²O and its prompt phases (6 x 1.37).

The paper does not have this comparison.

Command: python -m p2o_jax.main --config configs/paper/grpo_matched.py --workdir runs/grpo_matched
DeepMath-5K: add --config.data.path=data/deepmath/train_5k.jsonl
    --config.data.eval_path=data/deepmath/test.jsonl
Hardware, data and evaluation: as configs/paper/deepscaler_self.py.
Time: about 34 hours on 8 H100, estimated as there.
Score: unknown.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("grpo_6.py")))["get_config"]()
    c.rollout.group_size = 8
    return c
