"""GRPO with DAPO's dynamic sampling, which replaces groups without an advantage by new questions.

Command: python -m p2o_jax.main --config configs/paper/grpo_dapo.py --workdir runs/grpo_dapo
DeepMath-5K: add --config.data.path=data/deepmath/train_5k.jsonl
    --config.data.eval_path=data/deepmath/test.jsonl
Hardware, data and evaluation: as configs/paper/deepscaler_self.py.
Time: up to three times as long as configs/paper/grpo_6.py, estimated.
Score: 3.2 below GRPO in the paper.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("grpo_6.py")))["get_config"]()
    c.rollout.dynamic_sampling = True
    c.rollout.max_sampling_rounds = 3
    return c
