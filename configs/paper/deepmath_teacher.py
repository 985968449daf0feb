"""The paper's P²O, Teacher-Ref, on DeepMath-5K with Qwen3-4B.

DeepMath-10K: use train_10k.jsonl.

Command: python -m p2o_jax.main --config configs/paper/deepmath_teacher.py
    --workdir runs/deepmath_teacher
Requirements: as configs/paper/deepscaler_teacher.py.
Data, hardware and evaluation: as configs/paper/deepmath_self.py.
Time: about 38 hours on 8 H100 (10K: twice as long), estimated as there.
Score: the paper's average over the six benchmarks is 57.9 (10K: 55.5).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("deepscaler_teacher.py")))["get_config"]()
    c.data.path = "data/deepmath/train_5k.jsonl"
    c.data.eval_path = "data/deepmath/test.jsonl"
    return c
