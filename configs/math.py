"""P²O (preset recommended) on your own math questions, with a model like Qwen3-0.6B.

Command: python -m p2o_jax.main --config configs/math.py --config.model.path=DIR
    --config.data.path=FILE --workdir runs/mine
Hardware: one GPU or TPU host with 80 GB or more.
Time: not measured.
"""

from ml_collections import ConfigDict

from p2o_jax.config import Config
from p2o_jax.config.loading import to_config_dict


def get_config() -> ConfigDict:
    c = to_config_dict(Config())
    c.model.path = c.data.path = ""  # set both on the command line
    c.data.max_prompt_tokens = 1024
    c.rollout.questions = 64
    c.rollout.group_size = 8
    c.rollout.max_new_tokens = 2048
    c.rollout.prompt_buckets = (256, 1024, 2048, 8192)
    c.rollout.prompt_cache_tokens = 262144
    c.optim.minibatch_questions = 32
    c.optim.micro_rows = 8
    c.gepa.min_hard = 32
    c.gepa.dev_size = 64
    c.gepa.budget = "medium"
    c.gepa.reflect_prompt_tokens = 8000
    c.gepa.reflect_new_tokens = 1024
    return c
