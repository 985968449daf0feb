"""GRPO against P²O on the large toy world: twelve hard families, chains of 5 to 10 steps.

The model has 9,568,896 parameters.

Command: python -m p2o_jax.main --config configs/world_large.py
Hardware: one GPU with 24 GB.
Time: 1 to 2 hours on an H100 or H200, estimated and never run:
    Pretraining: 14 minutes. 10,500 x 64 x 256 + 1,500 x 32 x 448 = 194 million tokens take 1.1e16
        FLOP, at 20 % of 67 TFLOP/s in float32. One CPU core prepares the text at the same time.
    GRPO: 15 minutes. 3 million tokens are about 900 steps of 256 rollouts, under 1 s each, with an
        assumed 5 ms per decode step.
    P²O: 20 minutes, for 20 epochs of 13 steps and a prompt phase of 2,500 rollouts in 100 waves.
    Compilation: unknown, perhaps 15 minutes on first use.
Score: unknown. The learning rates are not tuned. `world.json` in the base model's folder says
    whether the model has learned each family's chain, and P(chain | plain).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("world_p2o.py")))["get_config"]()
    c.arms = ("grpo gepa.enabled=false", "p2o")
    c.world.size = "large"
    c.world.p_chain_plain = 1e-7
    c.world.steps = 12_000
    c.world.batch_rows = 64
    c.world.row_tokens = 256
    c.world.width = 384
    c.world.layers = 6
    c.world.heads = 6
    c.world.head_dim = 64
    c.world.mlp = 1024
    c.world.hard_per_family = 32
    c.world.easy_per_family = 8
    c.data.max_prompt_tokens = 40
    c.rollout.questions = 32
    c.rollout.max_new_tokens = 72
    c.rollout.prompt_buckets = (64, 128, 256)
    c.rollout.slots = 256
    c.rollout.prompt_cache_tokens = 65_536
    c.rollout.prefill_tokens = 16_384
    c.optim.lr = 1e-4
    c.optim.minibatch_questions = 32
    c.optim.micro_rows = 32
    c.optim.row_tokens = 256
    c.gepa.min_hard = 24
    c.gepa.dev_size = 72
    c.gepa.parents = 12
    c.gepa.max_metric_calls = 2500
    c.gepa.reflect_prompt_tokens = 192
    c.eval.every_steps = 20
    c.train.epochs = 200
    c.train.max_generated_tokens = 3_000_000
    return c
