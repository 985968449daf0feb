"""The run itself: its length, evaluation, checkpoints and records."""

from dataclasses import dataclass
from typing import Literal

from p2o_jax.config.ranges import SECONDS, SECONDS_OR_OFF, SEED, TEMPERATURE_OR_GREEDY, TOKENS
from p2o_jax.config.setting import setting


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on held-out questions during training."""

    every_steps: int = setting(
        20,
        "Policy steps between evaluations. 0: only before the first and after the last step.",
        ge=0,
    )
    temperature: float = setting(0.0, "Sampling temperature; 0 is greedy.", TEMPERATURE_OR_GREEDY)
    rollouts: int = setting(1, "Rollouts per question.", ge=1)
    max_questions: int = setting(0, "Questions of each set that are used. 0: all.", ge=0)
    template: Literal["none", "best"] = setting(
        "none", "▲ With best, held-out questions are asked under the best template so far."
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints.

    There is always one around every prompt phase, one at the end, and one of the best state on the
    held-out questions.
    """

    every_steps: int = setting(
        20, "Policy steps between further checkpoints. 0: none.", ge=0, resumable=True
    )
    keep: int = setting(
        2, "Newest checkpoints that are kept, besides the best.", ge=1, resumable=True
    )
    keep_every: int = setting(
        0,
        "Keep the checkpoint of every step that is a multiple of this, too. 0: off.",
        ge=0,
        resumable=True,
    )
    path: str = setting(
        "", 'Folder, or gs://BUCKET/FOLDER (extra "gs"). Empty: WORKDIR/checkpoints.'
    )
    grace_s: float = setting(
        25.0,
        "Seconds after SIGTERM within which the run must have saved its state and ended.",
        SECONDS,
        resumable=True,
    )


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, safeguards and records."""

    seed: int = setting(0, "Seed of all randomness of training.", SEED)
    epochs: int = setting(
        10,
        "Passes over the training questions. 0: only a prompt phase, with gepa.schedule=first.",
        ge=0,
        resumable=True,
    )
    max_generated_tokens: int = setting(
        0,
        "Stop when all phases together have generated this many tokens. 0: no limit.",
        TOKENS,
        resumable=True,
    )
    rollout_is: Literal["none", "token", "sequence", "token_mask", "sequence_mask"] = setting(
        "none",
        "Importance weights that correct for differences between the learner's and the sampler's"
        " probabilities: none, per token, or per response. token and sequence cap them; token_mask"
        " (IcePop, arXiv 2510.18855) and sequence_mask mask those outside of [1 / cap, cap].",
    )
    rollout_is_cap: float = setting(
        2.0,
        "Largest such importance weight.",
        ge=1,
        le=1e6,
        why="a smaller one would scale down every token's weight",
    )
    router_replay: bool = setting(
        False,
        "▲ In models with experts, the learner uses the experts that the sampler chose for each"
        " token of a response, instead of choosing again (arXiv 2510.11370). Where a templated"
        " response is trained on its plain prompt it chooses: the sampler saw another context. So"
        " does the reference policy of a KL term.",
    )
    max_bad_steps: int = setting(
        10,
        "Stop after this many updates that were not finite. 0: never.",
        ge=0,
        resumable=True,
    )
    num_samples_logged: int = setting(
        8, "Rollouts per step that are written to samples.jsonl.", ge=0, resumable=True
    )
    watchdog_s: float = setting(
        1800.0,
        "Seconds without progress after which the stacks of all threads are written to standard"
        " error. 0: never.",
        SECONDS_OR_OFF,
        resumable=True,
    )
    flat_rewards_steps: int = setting(
        20,
        "Print a notice after this many steps in a row in which all rewards were equal. 0: never.",
        ge=0,
        resumable=True,
    )
    compile_cache: str = setting(
        "runs/cache",
        "Folder, or gs://BUCKET/FOLDER, of compiled programs: a second start compiles nothing."
        " Empty: none. The variable JAX_COMPILATION_CACHE_DIR takes precedence.",
        resumable=True,
    )
    wandb_project: str = setting(
        "",
        'Weights & Biases project that metrics are sent to (extra "wandb"; the key is read from'
        " WANDB_API_KEY). Empty: none.",
        resumable=True,
    )


@dataclass(frozen=True)
class SftConfig:
    """Supervised training with `p2o_jax.sft`, which also reads data, chat, model, lora, mesh,
    optim, eval, checkpoint and train.
    """

    examples: int = setting(64, "Rows of the data per optimizer update.", ge=1)
    messages_field: str = setting(
        "messages",
        "Field of a row that is a chat: a list of messages, the last of which is the response.",
    )
