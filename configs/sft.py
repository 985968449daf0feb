"""Supervised warm-up of Qwen3-0.6B on your own rows with responses, before reinforcement learning.

Command: python -m p2o_jax.sft --config configs/sft.py --config.data.path=FILE --workdir runs/sft
Hardware: one GPU or TPU chip of 16 GB; with another config.model.path also a CPU.
Time: not run by us on an accelerator. tests/test_sft.py runs this file with a model of 0.2 million
    weights, in seconds on two CPU cores.
"""

from ml_collections import ConfigDict

from p2o_jax.config import Config
from p2o_jax.config.loading import to_config_dict


def get_config() -> ConfigDict:
    c = to_config_dict(Config())
    c.model.path = "Qwen/Qwen3-0.6B"
    c.data.path = ""  # yours
    c.data.max_prompt_tokens = 512
    c.rollout.max_new_tokens = 1024  # of a response
    c.rollout.prompt_buckets = (512, 32768)
    c.sft.examples = 64
    c.optim.lr = 1e-5
    c.optim.schedule = "cosine"
    c.optim.micro_rows = 8
    c.train.epochs = 2
    return c
