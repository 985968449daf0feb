"""The paper's P²O, Self-Ref (the frozen base model reflects), on DeepScaler-5K with Qwen3-4B.

The other configs of this folder start from this one.

Data: python -m p2o_jax.prepare deepscaler --out data/deepscaler --benchmarks
    aime24,aime25,amc23,math500,minerva,olympiadbench
Command: python -m p2o_jax.main --config configs/paper/deepscaler_self.py --workdir
    runs/deepscaler_self
Evaluation: python -m p2o_jax.evaluate --workdir runs/deepscaler_self --step best --out
    runs/deepscaler_self_eval --benchmarks aime24,aime25,amc23,math500,minerva,olympiadbench
Hardware: 8 chips with 80 GB or more (the paper used one node with 8 GPUs), or 16 v6e. For memory
    per chip, see docs/scale.md.
Time: about 40 hours on 8 H100, estimated and never run: 1.2 billion generated tokens (27 % of them
    by GEPA) with 3,000 tokens per response, sampled at 12,000 tokens/s (16 slots per GPU, each with
    space for 12,288 tokens), and 40 % of peak in scoring and updates.
Score: the paper's average over the six benchmarks is 62.4.
"""

from ml_collections import ConfigDict

from p2o_jax.config import Config
from p2o_jax.config.loading import to_config_dict


def get_config() -> ConfigDict:
    c = to_config_dict(Config())  # the defaults are those of the paper
    c.preset = "faithful"
    c.model.path = "Qwen/Qwen3-4B"
    c.data.path = "data/deepscaler/train_5k.jsonl"
    c.data.eval_path = "data/deepscaler/test.jsonl"
    # 5,120: the longest question after the longest template
    c.rollout.prompt_buckets = (512, 1024, 2048, 5120, 32768)
    c.optim.row_tokens = 16384
    c.optim.micro_rows = 16
    c.eval.every_steps = 30
    c.checkpoint.every_steps = 30
    c.train.seed = 42
    return c
