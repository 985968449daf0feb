"""GRPO against P²O on the large built-in world: twelve hard families, chains of 5 to 10 steps,
9,568,896 parameters.

Command: python -m p2o_jax.main --config configs/world_large.py
Hardware: one GPU with 24 GB. Time: about 1 to 2 hours on an H100 or H200, by arithmetic; it has
    never run on a GPU:
- Pretraining: 10,500 x 64 x 256 + 1,500 x 32 x 448 = 194 million tokens, x 6 x 9.57 million =
  1.1e16 FLOP: 14 minutes at 20 % of the 67 TFLOP/s of float32 without tensor cores. Drawing and
  packing the text is 3 minutes of one CPU core, beside it (15 ms a batch, measured).
- GRPO: 3 million tokens are some 900 steps of 256 rollouts (a bluff has 13 tokens). Sampling is not
  bound by arithmetic: at an assumed 5 ms a token up to 72 tokens, .4 s for a wave; with the update
  and the verifier less than 1 s a step, 15 minutes.
- P²O: some 20 epochs of 13 steps and a prompt phase of 2,500 rollouts in about 100 waves: 20
    minutes.
- Compiling: not known, perhaps 15 minutes on first use. Not known either: whether each family's
chain is learnt in so many steps, and P(chain | plain) as measured; `world.json` in the base model's
folder tells both. The learning rates of pretraining and training are the small world's and a half
of it, and not tuned.
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
