"""P²O (preset recommended) with a pretrained model of about 100 million weights on a laptop's CPU.

Command: python -m p2o_jax.main --config configs/laptop.py --config.model.path=DIR
    --config.data.path=FILE --config.data.eval_path=FILE --config.gepa.seed_templates=FILE
    --workdir runs/laptop
Hardware: 2 CPU cores, 10 GB of memory.
Time: minutes; examples/laptop runs it on SmolLM2-135M (docs/your-model.md#on-a-laptop).
"""

from ml_collections import ConfigDict

from p2o_jax.config import Config
from p2o_jax.config.loading import to_config_dict


def get_config() -> ConfigDict:
    c = to_config_dict(Config())
    c.model.path = c.data.path = ""  # set both on the command line
    # An update of a token takes about a gigaflop on 135M weights, a fiftieth of a second on two
    # cores. So prompts and responses are short, and nothing is computed twice.
    c.data.prompt_template = "{question}"  # a small model copies whatever stands around it
    c.data.max_prompt_tokens = 96
    c.rollout.max_new_tokens = 16
    c.model.remat = "none"
    # Each bucket is a program to compile: one for plain prompts, one for those under a template.
    c.rollout.prompt_buckets = (64, 192)
    c.rollout.prompt_cache_tokens = 8192
    c.rollout.prefill_tokens = 1024
    c.rollout.slots = 64
    c.rollout.min_slots = 0  # as many programs again for fewer slots: not worth their compilation
    # A step asks 16 questions 8 times; a group of 8 finds what succeeds once in ten tries.
    c.rollout.questions = 16
    c.rollout.group_size = 8
    c.rollout.temperature = 1.0
    # Packed rows hold three to five sequences; four rows are about 2 GB of activations.
    c.optim.row_tokens = 256
    c.optim.micro_rows = 4
    c.optim.minibatch_questions = 16
    # 50 times what a large model takes, for a few dozen updates. At 1e-4 SmolLM2 repeats itself.
    c.optim.lr = 5e-5
    c.optim.warmup_frac = 0.0
    c.gepa.schedule = "every_epoch"  # `adaptive`: one run only (docs/results.md)
    c.gepa.carry_over = 0
    # A model of this size seldom follows a reflection prompt. The budget lets the empty template
    # and seven of gepa.seed_templates be tried on dev; what is left of it goes to reflection.
    c.gepa.min_hard = 8
    c.gepa.dev_size = 16
    c.gepa.budget = "calls"
    c.gepa.max_metric_calls = 8 * 16
    c.gepa.reflector = "policy"  # a reference would be another copy of the weights
    c.gepa.prompt_style = "compact"
    c.gepa.max_template_tokens = 96
    c.gepa.reflect_prompt_tokens = 160
    c.gepa.reflect_new_tokens = 64
    c.eval.every_steps = 4
    c.checkpoint.every_steps = 4  # 1.6 GB each: weights and two moments
    c.checkpoint.keep = 1
    c.train.epochs = 100
    c.train.max_generated_tokens = 24_000
    return c
