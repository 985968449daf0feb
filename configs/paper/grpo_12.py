"""GRPO with G = 12, the paper's baseline with twice the rollouts, on DeepScaler-5K with Qwen3-4B.

Command: python -m p2o_jax.main --config configs/paper/grpo_12.py --workdir runs/grpo_12
DeepMath-5K: add --config.data.path=data/deepmath/train_5k.jsonl
    --config.data.eval_path=data/deepmath/test.jsonl
Hardware, data and evaluation: as configs/paper/deepscaler_self.py.
Time: about 51 hours on 8 H100, estimated as there.
Score: the paper's average is about 57.0 (DeepMath-5K: about 54.8).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("grpo_6.py")))["get_config"]()
    c.rollout.group_size = 12
    return c
