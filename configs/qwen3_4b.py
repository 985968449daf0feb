"""P²O (preset recommended) on your own math questions, with Qwen3-4B at the paper's lengths.

Rows have 16,384 tokens.

Command: python -m p2o_jax.main --config configs/qwen3_4b.py --config.model.path=DIR
    --config.data.path=FILE --workdir runs/mine
Hardware: v5p:2x2x2 (8 chips) or v6e:4x4 (16 chips). Compiled for both by p2o_jax.plan; never run.
"""

from ml_collections import ConfigDict

from p2o_jax.config import Config
from p2o_jax.config.loading import to_config_dict


def get_config() -> ConfigDict:
    c = to_config_dict(Config())
    c.model.path = c.data.path = ""  # set both on the command line
    c.mesh.fsdp = -1
    # 5,120: the longest question after the longest template
    c.rollout.prompt_buckets = (512, 1024, 2048, 5120, 32768)
    c.optim.row_tokens = 16384
    c.optim.micro_rows = 16
    return c
