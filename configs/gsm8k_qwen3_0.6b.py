"""P²O (preset recommended) on GSM8K with Qwen3-0.6B: a first real run on one v5e-8 or one H200.

Data: python -m p2o_jax.prepare gsm8k --out data/gsm8k
Command: python -m p2o_jax.main --config configs/gsm8k_qwen3_0.6b.py --workdir runs/gsm8k
Evaluation: python -m p2o_jax.evaluate --workdir runs/gsm8k --step best --benchmarks gsm8k,math500
    --out runs/gsm8k_eval
Hardware: one v5e-8 (8 x 16 GB) or one H200. For memory per chip, see docs/scale.md.
Time: about 3 hours, estimated and never run: 45 million generated tokens, with 250 tokens per
    response and 10,000 tokens/s, and as long again for updates, evaluation and GEPA.
Score: unknown. Compare with the evaluation at step 0 and with --config.gepa.enabled=false.
"""

from ml_collections import ConfigDict

from p2o_jax.config import Config
from p2o_jax.config.loading import to_config_dict


def get_config() -> ConfigDict:
    c = to_config_dict(Config())
    c.model.path = "Qwen/Qwen3-0.6B"
    c.data.path = "data/gsm8k/train.jsonl"
    c.data.eval_path = "data/gsm8k/test.jsonl"
    c.data.max_prompt_tokens = 512
    c.rollout.questions = 64
    c.rollout.group_size = 8
    c.rollout.temperature = 1.0
    c.rollout.max_new_tokens = 1024
    c.rollout.prompt_buckets = (256, 512, 1536, 8192)
    c.rollout.slots = 512
    c.rollout.prompt_cache_tokens = 131072
    c.rollout.prefill_tokens = 4096  # on each of eight shards
    c.optim.minibatch_questions = 64
    c.optim.micro_rows = 16
    c.gepa.min_hard = 64
    c.gepa.dev_size = 128
    c.gepa.budget = "medium"
    c.gepa.reflect_prompt_tokens = 8000
    c.gepa.reflect_new_tokens = 1024
    c.eval.every_steps = 39  # three times per epoch
    c.train.epochs = 3
    return c
