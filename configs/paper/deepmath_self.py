"""The paper's P²O, Self-Ref, on DeepMath-5K (difficulty 7 and above) with Qwen3-4B.

DeepMath-10K: use train_10k.jsonl.

Data: python -m p2o_jax.prepare deepmath --out data/deepmath --benchmarks
    aime24,aime25,amc23,math500,minerva,olympiadbench
Command: python -m p2o_jax.main --config configs/paper/deepmath_self.py --workdir runs/deepmath_self
Hardware and evaluation: as configs/paper/deepscaler_self.py.
Time: about 40 hours on 8 H100 (10K: twice as long), estimated as there.
Score: the paper's average over the six benchmarks is 64.2 (10K: 66.2).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("deepscaler_self.py")))["get_config"]()
    c.data.path = "data/deepmath/train_5k.jsonl"
    c.data.eval_path = "data/deepmath/test.jsonl"
    return c
