"""The policy update: advantages, distillation, loss and optimizer."""

from dataclasses import dataclass
from typing import Literal

from p2o_jax.config.ranges import Range
from p2o_jax.config.setting import setting

_BETA = Range(ge=0, le=0.99999, why="its bias correction divides by 1 - beta, in float32")
_CLIP_WHY = "1 +- it must differ from 1 in float32, or no token has its whole gradient"


@dataclass(frozen=True)
class AdvConfig:
    """Advantages of the rollouts of a group."""

    kind: Literal["grpo", "dr_grpo", "rloo", "maxrl"] = setting(
        "grpo",
        "Advantage of a rollout. grpo: reward minus the group's mean, divided by its standard"
        " deviation; dr_grpo: not divided; rloo: against the mean of the group's other rollouts;"
        " maxrl: divided by the group's mean (arXiv 2602.02710).",
    )


@dataclass(frozen=True)
class DistillConfig:
    """Context distillation: how tokens sampled under a template are trained on the plain prompt
    (docs/algorithm.md, step 6). rho is the ratio of a token's probability without the template to
    that with it.
    """

    mode: Literal["ratio_mask", "truncated", "plain", "importance", "off"] = setting(
        "ratio_mask",
        "Weight of each templated token. ratio_mask: 1 where rho is within bounds; truncated:"
        " min(rho, cap); plain: 1; importance: the ratio is taken against the templated"
        " probability; off: no distillation, train on the templated prompt.",
    )
    clip: Literal["hard", "soft"] = setting(
        "hard",
        "For mode=ratio_mask: the weight outside the bounds. hard: 0; soft: bound / rho.",
    )
    eps_low: float | None = setting(
        None,
        "The lower bound on rho is 1 - eps_low. 1: none, so that tokens which only a template makes"
        " likely are learned; with the paper's 0.99 they are not.",
        ge=0,
        le=1,
    )
    eps_high: float = setting(9.0, "The upper bound on rho is 1 + eps_high.", ge=0, le=1e6)
    cap: float = setting(2.0, "For mode=truncated: the largest weight.", gt=0, le=1e6)
    drop_failed_templated: bool | None = setting(
        None, "Leave templated rollouts that fail out of the loss."
    )
    failed_weight: float = setting(
        1.0,
        "▲ Additional factor on the weights of tokens of templated rollouts that fail.",
        ge=0,
        le=1,
    )


@dataclass(frozen=True)
class LossConfig:
    """The policy loss and its additional terms."""

    ratio: Literal["token", "sequence", "cispo", "dppo"] = setting(
        "token",
        "What is clipped. token: each token's ratio (PPO); sequence: the ratio of the whole"
        " response (GSPO); cispo: the weight of the gradient, so that every token keeps one; dppo:"
        " tokens whose probability has fallen by more than clip_low or risen by more than clip_high"
        " are masked, where the advantage would move them further (arXiv 2602.04879).",
    )
    clip_low: float = setting(
        0.2, "The ratio is clipped below 1 - clip_low.", ge=1e-6, le=1, why=_CLIP_WHY
    )
    clip_high: float = setting(
        0.2, "The ratio is clipped above 1 + clip_high. DAPO: 0.28.", ge=1e-6, le=1e6, why=_CLIP_WHY
    )
    dual_clip: float = setting(
        3.0,
        "With a negative advantage, a token's loss is at most this times |advantage| (arXiv"
        " 1912.09729).",
        gt=1,
        le=1e6,
        why="at a ratio of 1 it would silence every negative advantage",
    )
    aggregation: Literal[
        "token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"
    ] = setting(
        "token-mean",
        "How token losses become the loss of a mini-batch. token-mean: the mean over tokens."
        " seq-mean-token-sum, seq-mean-token-mean: the mean over responses of their sum or mean."
        " seq-mean-token-sum-norm: the sum of all, divided by rollout.max_new_tokens.",
    )
    kl: Literal["off", "k1", "k2", "k3"] = setting(
        "off", "Estimator of the KL divergence from the reference policy, the initial weights."
    )
    kl_coef: float = setting(
        0.001,
        "Coefficient of the KL divergence in the loss.",
        ge=0,
        le=1e6,
        why="a negative one would reward leaving the reference policy",
    )
    entropy_coef: float = setting(
        0.0,
        "Coefficient of the mean entropy, which is subtracted from the loss; below 0 entropy is"
        " lowered.",
        ge=-100,
        le=100,
    )
    self_distill_coef: float = setting(
        0.0,
        "Coefficient of self-distillation: the KL divergence of the plain prediction from the"
        " templated one, on right templated responses (arXiv 2601.20802, 2603.23871).",
        ge=0,
        le=1e6,
        why="a negative one would unlearn right responses",
    )
    router_balance_coef: float = setting(
        0.0,
        "Coefficient of the load-balancing loss of models with experts, the mean over layers and"
        " micro-batches; it is 1 where routers choose evenly.",
        ge=0,
        le=100,
        why="a negative one would reward an uneven choice of experts",
    )
    overlong: Literal["none", "mask", "penalty"] = setting(
        "none",
        "Truncated responses. mask: they are left out of the loss; penalty: DAPO's, subtracted from"
        " the reward.",
    )
    overlong_buffer: int = setting(
        4096, "Last tokens before rollout.max_new_tokens over which the penalty grows.", ge=1
    )
    overlong_penalty: float = setting(
        1.0,
        "The penalty at rollout.max_new_tokens.",
        ge=0,
        le=1e6,
        why="a negative one would reward responses that are cut off",
    )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule, and how a step's rollouts are batched."""

    lr: float = setting(1e-6, "Peak learning rate.", ge=0, le=1)
    schedule: Literal["constant", "cosine"] = setting(
        "constant", "Learning rate after the warm-up. cosine: down to 0 at the last update."
    )
    warmup_frac: float = setting(
        0.05, "Fraction of all steps over which the learning rate rises linearly.", ge=0, le=1
    )
    mu_dtype: Literal["float32", "bfloat16"] = setting("float32", "Dtype of AdamW's first moment.")
    b1: float = setting(0.9, "AdamW's decay rate of the first moment.", _BETA)
    b2: float = setting(0.999, "AdamW's decay rate of the second moment.", _BETA)
    weight_decay: float = setting(0.01, "AdamW's decoupled weight decay.", ge=0, le=100)
    clip_norm: float = setting(
        1.0,
        "Global norm that gradients are clipped to.",
        ge=1e-3,
        le=1e9,
        why="gradients clipped to less would vanish beside Adam's epsilon",
    )
    minibatch_questions: int = setting(64, "Questions per optimizer update.", ge=1)
    micro_rows: int = setting(
        8, "Rows per forward and backward pass, over all devices.", ge=1, resumable=True
    )
    row_tokens: int = setting(
        0, "Tokens of a packed row. 0: longest prompt + longest response.", ge=0
    )
