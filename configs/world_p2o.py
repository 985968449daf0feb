"""P²O (preset recommended) on the toy world, to 120,000 generated tokens.

Command: python -m p2o_jax.main --config configs/world_p2o.py
Hardware: 2 CPU cores, 2 GB of memory.
Time: about 2 minutes, and about 3 minutes for pretraining the base model on first use.
"""

from ml_collections import ConfigDict

from p2o_jax.config import Config
from p2o_jax.config.loading import to_config_dict


def get_config() -> ConfigDict:
    c = to_config_dict(Config())
    c.data.prompt_template = "{question}"
    c.data.max_prompt_tokens = 32
    c.reward.kind = "exact"
    c.rollout.questions = 16
    c.rollout.group_size = 8
    c.rollout.temperature = 1.0
    c.rollout.max_new_tokens = 40
    c.rollout.prompt_buckets = (32, 64, 160)
    c.rollout.slots = 64
    c.rollout.min_slots = 32
    c.rollout.prompt_cache_tokens = 8192
    c.rollout.prefill_tokens = 2048
    c.mining.max_successes = 0
    c.optim.lr = 2e-4
    c.optim.b2 = 0.98
    c.optim.warmup_frac = 0.0
    c.optim.minibatch_questions = 4
    c.optim.micro_rows = 8
    c.optim.row_tokens = 96
    c.model.remat = "full"
    c.gepa.min_hard = 8
    c.gepa.dev_size = 24
    c.gepa.parents = 6
    c.gepa.budget = "calls"
    c.gepa.max_metric_calls = 300
    c.gepa.prompt_style = "compact"
    c.gepa.reflect_temperature = 1.0
    c.gepa.reflect_prompt_tokens = 150
    c.gepa.reflect_new_tokens = 40
    c.gepa.max_template_tokens = 32
    c.eval.every_steps = 5
    c.train.epochs = 60
    c.train.max_generated_tokens = 120_000
    return c
