"""Every setting of a run: one frozen dataclass per section, defaults = the paper's, with unit and range beside each field.

`config_files` makes these values from config files and flags, `config_rules` lists what is wrong with them, all at once.
A field that is None and named in `PRESETS` is filled in by `resolve` from the preset.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from p2o_jax.config.ranges import (
    SECONDS,
    SECONDS_OR_OFF,
    SEED,
    TEMPERATURE,
    TEMPERATURE_OR_GREEDY,
    Range,
    bounded,
)

_BETA = Range(ge=0, le=0.99999, why="its bias correction divides by 1 - beta, in float32")
_CLIP_WHY = "1 +- it must differ from 1 in float32, or no token has its whole gradient"
_TOKENS = Range(ge=0, le=10**15)  # of a whole run


class ConfigError(ValueError):
    """One or more problems with what the user gave us; `problems` has a line for each."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class ModelConfig:
    path: str = "world"  # a Hugging Face directory, or "world": the built-in base model, pretrained on first use
    param_dtype: Literal["float32", "bfloat16"] = (
        "float32"  # master weights; adapters are always float32
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # auto: bfloat16 on TPU and GPU, float32 on CPU
    )
    remat: Literal["none", "full", "dots"] = (
        "full"  # what the backward pass makes again of a layer; dots: all but matrix products
    )
    # true: prompts and responses may be longer than the positions that the model was made for (max_position_embeddings, with what
    # rope scaling adds); otherwise that is an error
    allow_long_context: bool = False
    # tokens whose [chunk, V] logits exist at one time, in each of the mesh's data x fsdp parts
    logit_chunk: int = bounded(1024, ge=1)


@dataclass(frozen=True)
class WorldConfig:
    """The built-in world (used where model.path or data.path is "world")."""

    size: Literal["small", "large"] = (
        "small"  # of its language; large: more families, longer chains (p2o_jax/toy_world/large.py), for a GPU
    )
    seed: int = bounded(0, SEED)  # of families, documents, pretraining and questions alike
    # the dial: P(whole chain | no template) in the pretraining text
    p_chain_plain: float = bounded(1e-5, gt=0, le=1)
    steps: int = bounded(1500, ge=1)  # pretraining steps
    batch_rows: int = bounded(16, ge=1)  # rows of row_tokens per pretraining step
    row_tokens: int = bounded(96, ge=1)
    width: int = bounded(128, ge=1)
    layers: int = bounded(3, ge=1)
    heads: int = bounded(4, ge=1)
    kv_heads: int = bounded(2, ge=1)
    head_dim: int = bounded(32, ge=2)
    mlp: int = bounded(256, ge=1)
    hard_per_family: int = bounded(16, ge=1)  # training questions of each hard family
    easy_per_family: int = bounded(4, ge=0)
    heldout_per_family: int = bounded(32, ge=1)  # held-out questions of each hard family
    cache_dir: str = "runs/world"  # pretrained base models, one folder per world config


@dataclass(frozen=True)
class DataConfig:
    path: str = "world"  # a file, a folder, hf:NAME, tfds:NAME (p2o_jax/data/sources.py says how), or "world"
    eval_path: str = ""  # held-out questions, likewise, or NAME=PATH,NAME=PATH for several sets, the first of which is the dev set;
    # a benchmark of p2o_jax/data/benchmarks.py is NAME or NAME=PATH; empty: the world's own, or no evaluation
    question_field: str = "question"  # a text, or a list of chat messages
    answer_field: str = "answer"  # empty: there are none (config.reward.fn)
    # {question} is where a question that is a text goes; other braces are braces. The default is the released code's.
    prompt_template: str = "Let's think step by step and output the final answer within \\boxed{}.\nQuestion: {question}"
    tfds_dir: str = ""  # folder of TensorFlow Datasets; empty: theirs
    # longer plain prompts are an error that names the lines
    max_prompt_tokens: int = bounded(4096, ge=1)


@dataclass(frozen=True)
class ChatConfig:
    system_prompt: str = ""
    enable_thinking: bool = False  # passed to the tokenizer's chat template
    template: str = ""  # Jinja chat template for models that have none; empty: the tokenizer's own


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis, one of which may be -1: whatever is left; and how long processes wait for each other."""

    # parts that a CPU is split into, where it is the only device; 0: one, or as JAX is told
    cpu_devices: int = bounded(0, ge=0, le=4096)
    data: int = bounded(1, ge=1, also=(-1,))
    fsdp: int = bounded(-1, ge=1, also=(-1,))
    tensor: int = bounded(1, ge=1, also=(-1,))
    start_s: float = bounded(300.0, SECONDS)  # within which all processes must have come
    # a process that gives no sign of life for so long ends the run on all
    silent_s: float = bounded(100.0, SECONDS)
    # and so does one that is so long behind where the others wait for it
    absent_s: float = bounded(1800.0, SECONDS)


@dataclass(frozen=True)
class RolloutConfig:
    questions: int = bounded(128, ge=1)  # per training step
    group_size: int = bounded(6, ge=1)  # G, rollouts per question
    temperature: float = bounded(0.6, TEMPERATURE)
    # 0: off. top_k, top_p and min_p hold for all that the model writes: training, evaluation,
    # candidates of GEPA and reflection (p2o_jax/rollout/sampling_params.py)
    top_k: int = bounded(0, ge=0)
    top_p: float = bounded(1.0, gt=0, le=1)  # 1: off
    min_p: float = bounded(0.0, ge=0, lt=1)  # 0: off
    max_new_tokens: int = bounded(12288, ge=1)
    # prompts are padded to the next of these
    prompt_buckets: tuple[int, ...] = bounded((512, 1024, 2048, 4096, 32768), ge=1)
    # rollouts decoded side by side, over all devices; 0: as many as fit into their memory
    slots: int = bounded(0, ge=0)
    # on CPU, as rollouts end and no others wait, slots are halved down to this many per shard; 0:
    # never
    min_slots: int = bounded(8, ge=0)
    # prompt tokens held in the cache at a time, over all devices
    prompt_cache_tokens: int = bounded(524288, ge=1)
    # prompt tokens prefilled at a time in each of the mesh's data x fsdp parts
    prefill_tokens: int = bounded(2048, ge=1)
    share_prefixes: bool = True  # what prompts of a wave begin with alike is prefilled once
    cache_dtype: Literal["auto", "int8"] = (
        "auto"  # of keys and values while sampling; auto: the compute dtype
    )
    dynamic_sampling: bool = (
        False  # DAPO: ask further questions until the step is full of groups with an advantage
    )
    # of dynamic sampling, the step's own batch included
    max_sampling_rounds: int = bounded(10, ge=1)


@dataclass(frozen=True)
class RewardConfig:
    kind: Literal["exact", "math"] = (
        "math"  # exact: same text in the last box; math: math-verify in worker processes
    )
    fn: str = ""  # FILE.py:function or package.module:function of your own, in place of kind (p2o_jax/rewards/own.py)
    env: tuple[
        str, ...
    ] = ()  # names of environment variables that fn needs; workers get no others with keys or tokens
    # a score above this is a success: in mining, cover, reflection, templates and history alike
    success_above: float = bounded(0.5, ge=0, lt=1, why="no score is above 1")
    workers: int = bounded(0, ge=0, le=4096)  # verifier processes; 0: one per CPU core
    timeout_s: float = bounded(5.0, SECONDS)  # hard deadline per answer


@dataclass(frozen=True)
class MiningConfig:
    # a question is hard with at most so many successes, and not all, in its group
    max_successes: int = bounded(1, ge=0)
    judge_on: Literal["all", "plain"] | None = None  # rollouts that decide hardness
    sticky: bool = (
        False  # ▲ what the last epoch found hard stays hard until a plain rollout succeeds
    )
    # ▲ further plain groups of G for each question that the last epoch found hard
    extra_plain_groups: int = bounded(0, ge=0)


LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters in place of all weights; the frozen rest is the reference policy, too."""

    rank: int = bounded(0, ge=0)  # 0: all weights are trained
    alpha: float = bounded(16.0, gt=0, le=1e6)
    targets: tuple[str, ...] = LORA_TARGETS


@dataclass(frozen=True)
class AdvConfig:
    kind: Literal["grpo", "dr_grpo", "rloo"] = (
        "grpo"  # dr_grpo: not divided by std; rloo: against the mean of the others
    )


@dataclass(frozen=True)
class DistillConfig:
    mode: Literal["ratio_mask", "truncated", "transfer", "plain", "importance", "off"] = (
        "ratio_mask"  # algorithm step 6
    )
    clip: Literal["hard", "soft"] = "hard"
    eps_low: float = bounded(0.99, ge=0, le=1)
    eps_high: float = bounded(9.0, ge=0, le=1e6)
    # of the density ratio that is the weight, for mode=truncated
    cap: float = bounded(2.0, gt=0, le=1e6)
    # nats per token by which a response may lean on its template for a weight of 1/e, for
    # mode=transfer
    transfer_scale: float = bounded(0.3, ge=1e-6, le=1e6)
    drop_failed_templated: bool | None = None  # templated rollouts that fail leave the loss
    # ▲ of the tokens of failed templated rollouts, times what the mode says
    failed_weight: float = bounded(1.0, ge=0, le=1)


@dataclass(frozen=True)
class LossConfig:
    ratio: Literal["token", "sequence", "cispo"] = (
        "token"  # token: PPO; sequence: GSPO; cispo: clipped weights, not clipped losses
    )
    clip_low: float = bounded(0.2, ge=1e-6, le=1, why=_CLIP_WHY)
    clip_high: float = bounded(0.2, ge=1e-6, le=1e6, why=_CLIP_WHY)  # DAPO: 0.28
    # the loss of a token with a negative advantage is at most this times |advantage| (arXiv 1912.09729)
    dual_clip: float = bounded(
        3.0, gt=1, le=1e6, why="at a ratio of 1 it would silence every negative advantage"
    )
    aggregation: Literal[
        "token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"
    ] = "token-mean"
    kl: Literal["off", "k1", "k2", "k3"] = "off"  # to the frozen initial policy
    kl_coef: float = bounded(
        0.001, ge=0, le=1e6, why="a negative one would reward leaving the reference policy"
    )
    # of the mean entropy, taken from the loss; below 0 entropy is lowered
    entropy_coef: float = bounded(0.0, ge=-100, le=100)
    overlong: Literal["none", "mask", "penalty"] = (
        "none"  # mask: truncated responses leave the loss; penalty: DAPO's, on the reward
    )
    # last tokens before rollout.max_new_tokens over which the penalty grows
    overlong_buffer: int = bounded(4096, ge=1)
    # at rollout.max_new_tokens
    overlong_penalty: float = bounded(
        1.0, ge=0, le=1e6, why="a negative one would reward responses that are cut off"
    )


@dataclass(frozen=True)
class OptimConfig:
    lr: float = bounded(1e-6, ge=0, le=1)
    schedule: Literal["constant", "cosine"] = (
        "constant"  # after the warm-up; cosine: down to 0 at the last update
    )
    warmup_frac: float = bounded(0.05, ge=0, le=1)  # of all steps; linear
    mu_dtype: Literal["float32", "bfloat16"] = "float32"  # of AdamW's first moment
    b1: float = bounded(0.9, _BETA)
    b2: float = bounded(0.999, _BETA)
    weight_decay: float = bounded(0.01, ge=0, le=100)
    clip_norm: float = bounded(
        1.0, ge=1e-3, le=1e9, why="gradients clipped to less would vanish beside Adam's epsilon"
    )
    minibatch_questions: int = bounded(64, ge=1)  # an optimizer update each
    micro_rows: int = bounded(8, ge=1)  # rows per forward and backward pass, over all devices
    row_tokens: int = bounded(0, ge=0)  # length of a row; 0: longest prompt + longest response


@dataclass(frozen=True)
class GepaConfig:
    enabled: bool = True  # off: plain GRPO
    schedule: Literal["every_epoch", "first"] = (
        "every_epoch"  # first: once, on all questions, before training; its templates stay
    )
    min_hard: int = bounded(100, ge=1)  # fewer hard questions: no prompt phase
    dev_size: float = bounded(300.0, gt=0, le=2**31 - 1)  # a count, or a fraction up to 0.5
    parents: int = bounded(16, ge=1)  # k, proposals per iteration
    minibatch: int = bounded(3, ge=1)  # m, reflection examples per proposal
    budget: Literal[
        "light",
        "medium",
        "heavy",
        "heavy_2",
        "heavy_3",
        "heavy_4",
        "heavy_16",
        "calls",
        "full_evals",
    ] = "heavy_4"
    max_metric_calls: int = bounded(0, ge=0)  # rollouts, for budget=calls
    max_full_evals: int = bounded(0, ge=0)  # passes over train + dev, for budget=full_evals
    reflector: Literal["policy", "reference", "api"] = (
        "reference"  # api: the endpoint of config.api
    )
    prompt_style: Literal["paper", "compact"] = (
        "paper"  # compact: a few words, for very small models
    )
    reflect_temperature: float = bounded(0.6, TEMPERATURE_OR_GREEDY)
    reflect_prompt_tokens: int = bounded(32768 - 2048 - 500, ge=1)  # examples are cut to fit this
    reflect_new_tokens: int = bounded(2048, ge=1)
    rollouts_per_eval: int = bounded(1, ge=1)
    acceptance: Literal["strict", "margin"] = "strict"
    # sum over the minibatch, for acceptance=margin
    acceptance_margin: float = bounded(1.0, ge=0, le=1e6)
    show_reference_answer: bool = True
    max_template_tokens: int = bounded(1024, ge=1)
    temperature: float | None = bounded(None, TEMPERATURE_OR_GREEDY)  # of candidate evaluation
    count_unsolved_fronts: bool | None = (
        None  # dev questions that nobody solves weigh in the choice of parents
    )
    reliance: bool = False  # ▲ a second front: of those that solve a dev question, the template whose response leans on it least
    # parents that no child could beat on their minibatch are not reflected on
    skip_perfect: bool | None = None
    fill_width: bool | None = (
        None  # reuse parents, with other minibatches, until k proposals are made
    )
    max_iterations: int | None = bounded(None, ge=0)  # 0: no limit
    patience: int | None = bounded(None, ge=0)  # iterations without an accepted child; 0: no limit
    charge_all: bool | None = None  # charge every rollout to the budget; off: as the released code
    filter_replies: bool | None = None  # reject unfenced, <think>, over-long and duplicate replies
    leak_guard: bool | None = None  # reject templates that hold a minibatch's answer or question


@dataclass(frozen=True)
class ApiConfig:
    """The OpenAI-compatible endpoint that reflects where gepa.reflector is "api"; gepa.reflect_temperature and
    gepa.reflect_new_tokens hold for it, too. The caps are on the whole run, restarts included.
    """

    base_url: str = ""  # e.g. https://api.example.com/v1; /chat/completions is added
    model: str = ""
    key_env: tuple[str, ...] = (
        "OPENAI_API_KEY",
    )  # names of environment variables that hold keys, used in turn; () for none
    extra_body: str = ""  # JSON object of further request fields, e.g. {"chat_template_kwargs": {"enable_thinking": false}}
    concurrency: int = bounded(8, ge=1, le=1024)  # requests at a time
    # of a request from its start to its last byte, however steadily bytes trickle in
    timeout_s: float = bounded(120.0, SECONDS)
    retries: int = bounded(4, ge=0, le=100)  # attempts after the first
    # before the first retry, give or take half; doubles with every further one, up to a minute
    backoff_s: float = bounded(1.0, ge=0, le=1e6)
    max_tokens_total: int = bounded(0, _TOKENS)  # prompt and reply tokens; 0: no cap
    max_dollars: float = bounded(0.0, ge=0, le=1e9)  # 0: no cap; needs the prices
    dollars_per_million_prompt: float = bounded(0.0, ge=0, le=1e9)
    dollars_per_million_reply: float = bounded(0.0, ge=0, le=1e9)


@dataclass(frozen=True)
class AssignConfig:
    # rollouts of each templated group that stay plain
    plain_rollouts: int | None = bounded(None, ge=0)
    same_template_in_group: bool = False
    bandit: bool = False  # ▲ templates are chosen at each step by what they did in training (p2o_jax/p2o/bandit.py)
    bandit_prior: float = bounded(8.0, gt=0, le=1e6)  # rollouts that a dev score counts for
    bandit_discount: float = bounded(0.95, ge=0, le=1)  # of what was learnt, per policy step


@dataclass(frozen=True)
class EvalConfig:
    every_steps: int = bounded(20, ge=0)  # 0: only before the first and after the last step
    temperature: float = bounded(0.0, TEMPERATURE_OR_GREEDY)
    rollouts: int = bounded(1, ge=1)  # per question
    max_questions: int = bounded(0, ge=0)  # of each set; 0: all
    template: Literal["none", "best"] = (
        "none"  # ▲ best: held-out questions are asked under the best template so far
    )


@dataclass(frozen=True)
class CheckpointConfig:
    # besides those around every prompt phase, at the end, and of the best state on the held-out
    # questions
    every_steps: int = bounded(20, ge=0)
    keep: int = bounded(2, ge=1)  # the newest; the best stays, too
    keep_every: int = bounded(0, ge=0)  # those of every so many policy steps stay for good; 0: none
    path: str = ""  # folder, or gs://BUCKET/FOLDER (extra "gs"); empty: WORKDIR/checkpoints
    # after SIGTERM the run has saved and left within this time
    grace_s: float = bounded(25.0, SECONDS)


@dataclass(frozen=True)
class TrainConfig:
    seed: int = bounded(0, SEED)
    epochs: int = bounded(10, ge=0)  # 0: a prompt phase only, with gepa.schedule=first
    # stop when all phases together have generated so many; 0: no limit
    max_generated_tokens: int = bounded(0, _TOKENS)
    rollout_is: Literal["none", "token", "sequence"] = (
        "none"  # importance weights of the learner's policy against the sampler's
    )
    # they are truncated at this
    rollout_is_cap: float = bounded(
        2.0, ge=1, le=1e6, why="a smaller one would scale down every token's weight"
    )
    # the run stops when so many updates were not finite; 0: never
    max_bad_steps: int = bounded(10, ge=0)
    num_samples_logged: int = bounded(8, ge=0)  # rollouts written to samples.jsonl per step
    # a step or iteration of GEPA that lasts longer has all stacks written to standard error; 0:
    # never
    watchdog_s: float = bounded(1800.0, SECONDS_OR_OFF)
    # a notice when so many steps in a row had equal rewards only; 0: never
    flat_rewards_steps: int = bounded(20, ge=0)
    compile_cache: str = "runs/cache"  # folder, or gs://BUCKET/FOLDER, of compiled programs: a second start compiles nothing; empty: none
    wandb_project: str = ""  # Weights & Biases is told the metrics, too (extra "wandb"; it takes its key from WANDB_API_KEY); empty: not


@dataclass(frozen=True)
class Config:
    preset: Literal["faithful", "recommended"] = "recommended"
    model: ModelConfig = field(default_factory=ModelConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)
    adv: AdvConfig = field(default_factory=AdvConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    gepa: GepaConfig = field(default_factory=GepaConfig)
    api: ApiConfig = field(default_factory=ApiConfig)
    assign: AssignConfig = field(default_factory=AssignConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    arms: tuple[
        str, ...
    ] = ()  # runs to compare, each "name key=value key=value"; empty: a single run


PRESETS: dict[str, dict[str, Any]] = {
    # As the released code does it, the oddities that matter for its numbers included.
    "faithful": {
        "mining.judge_on": "all",
        "distill.drop_failed_templated": False,
        "gepa.temperature": 0.0,
        "gepa.count_unsolved_fronts": True,
        "gepa.skip_perfect": False,
        "gepa.fill_width": False,
        "gepa.max_iterations": 0,
        "gepa.patience": 0,
        "gepa.charge_all": False,
        "gepa.filter_replies": False,
        "gepa.leak_guard": False,
        "assign.plain_rollouts": 0,
    },
    # ▲ The mends of docs/algorithm.md's table of known weaknesses; each is a switch of its own.
    "recommended": {
        "mining.judge_on": "plain",
        "distill.drop_failed_templated": True,  # docs/results.md
        "gepa.temperature": 0.0,
        "gepa.count_unsolved_fronts": False,
        "gepa.skip_perfect": True,
        "gepa.fill_width": True,
        "gepa.max_iterations": 100,
        "gepa.patience": 8,
        "gepa.charge_all": True,
        "gepa.filter_replies": True,
        "gepa.leak_guard": True,
        "assign.plain_rollouts": 2,
    },
}


def resolve(config: Config) -> Config:
    """The config with every field that its preset decides filled in, unless it was set."""
    for key, value in PRESETS[config.preset].items():
        section, name = key.split(".")
        part = getattr(config, section)
        if getattr(part, name) is None:
            config = dataclasses.replace(
                config, **{section: dataclasses.replace(part, **{name: value})}
            )
    path, _, function = config.reward.fn.rpartition(":")
    if path.endswith(".py"):  # absolute, so that the run's record names one file
        fn = f"{os.path.abspath(os.path.expanduser(path))}:{function}"
        config = dataclasses.replace(config, reward=dataclasses.replace(config.reward, fn=fn))
    return config


def max_prompt_tokens(config: Config) -> int:
    """The longest prompt that the sampler takes: its largest bucket."""
    return max(config.rollout.prompt_buckets)


def longest_template_tokens(config: Config) -> int:
    """The longest template that can be accepted: without filters, as long as a reply."""
    gepa = config.gepa
    return (
        gepa.max_template_tokens
        if gepa.filter_replies
        else max(gepa.max_template_tokens, gepa.reflect_new_tokens)
    )


def max_templated_prompt_tokens(config: Config) -> int:
    """The longest T(x, z): a longest plain prompt under a longest template, as far as the sampler takes it."""
    return min(
        max_prompt_tokens(config), config.data.max_prompt_tokens + config.gepa.max_template_tokens
    )


def trained_row_tokens(config: Config) -> int:
    """T of the update's rows: set, or long enough for any prompt that is trained on with any response."""
    longest = (
        max_templated_prompt_tokens(config)
        if config.distill.mode == "off"
        else config.data.max_prompt_tokens
    )
    return config.optim.row_tokens or longest + config.rollout.max_new_tokens


def templated_row_tokens(config: Config) -> int:
    """T of the rows that score responses on templated prompts."""
    return max(
        config.optim.row_tokens, max_templated_prompt_tokens(config) + config.rollout.max_new_tokens
    )


def minibatch_questions(config: Config) -> int:
    return min(config.optim.minibatch_questions, config.rollout.questions)


def minibatch_rollouts(config: Config) -> int:
    """Rollouts of an optimizer update."""
    return minibatch_questions(config) * config.rollout.group_size


def mesh_shape(mesh: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) with a -1 replaced by what is left of the devices."""
    shape = [mesh.data, mesh.fsdp, mesh.tensor]
    if shape.count(-1) == 1:
        known = -shape[0] * shape[1] * shape[2]
        shape[shape.index(-1)] = max(num_devices // max(known, 1), 1)
    return shape[0], shape[1], shape[2]
