"""The paper's P²O, Teacher-Ref (Kimi-K2 reflects), on DeepScaler-5K with Qwen3-4B.

Command: python -m p2o_jax.main --config configs/paper/deepscaler_teacher.py
    --workdir runs/deepscaler_teacher
Requirements: a key in MOONSHOT_API_KEY, or another OpenAI-compatible endpoint (config.api). Set
    config.api.max_tokens_total.
Hardware, data and evaluation: as configs/paper/deepscaler_self.py.
Time: about 38 hours on 8 H100, estimated as there.
Score: the paper's average over the six benchmarks is 65.2.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("deepscaler_self.py")))["get_config"]()
    c.gepa.reflector = "api"
    c.api.base_url = "https://api.moonshot.ai/v1"
    c.api.model = "kimi-k2-0905-preview"
    c.api.key_env = ("MOONSHOT_API_KEY",)
    return c
