"""What is measured: a table of every metric's name and meaning, and those computed from rollouts.
The x-axis is the policy step. Every meaning can be read on its own: the report shows it beside
the curve.

A row has only the metrics that there was something to measure for: a mean or share over nothing is
absent, not 0.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from p2o_jax.evaluation import metrics
from p2o_jax.gepa import STATS, api
from p2o_jax.p2o import question_history
from p2o_jax.state import Ledger
from p2o_jax.types import Rollout

PHASES: dict[str, str] = {
    "policy": "rollouts of training",
    "score": "old, reference and templated log-probs",
    "update": "updates",
    "gepa_seed": "GEPA: the templates that a phase begins with, on dev",
    "gepa_parents": "GEPA: parents on their minibatches",
    "gepa_children": "GEPA: children on their parents' minibatches",
    "gepa_dev": "GEPA: accepted children on dev",
    "gepa_reflect": "GEPA: reflection (by the policy, the initial model or an endpoint)",
    "eval": "evaluation, not counted in totals",
}
AMOUNTS: dict[str, str] = {
    "rollouts": "rollouts",
    "prompt_tokens": "prompt tokens",
    "generated_tokens": "generated tokens",
    "flops": "estimated FLOPs (p2o_jax/models/flops.py)",
}

METRICS: dict[str, str] = {
    "train/loss": "loss of the mini-batch, mean over the step's updates",
    "train/policy_loss": "policy part of the loss",
    "train/kl_loss": "aggregated KL to the reference, before its coefficient",
    "train/grad_norm": "global norm of the gradient before clipping",
    "train/update_norm": (
        "global norm of the change of the parameters as they are stored, rounding included; 0 for a"
        " skipped update"
    ),
    "train/param_norm": "global norm of the parameters",
    "train/approx_kl": "mean of old minus new log-prob over trained tokens",
    "train/entropy": (
        "mean entropy of the policy at trained tokens, nats; absent where none was trained"
    ),
    "train/self_distill_loss": (
        "aggregated divergence of the plain prediction from the templated one on right templated"
        " responses, before its coefficient"
    ),
    "train/frac_clipped": (
        "share of trained tokens whose loss the PPO clip decided, or which loss.ratio=dppo masked"
    ),
    "train/frac_dual_clipped": "share of trained tokens whose loss the dual clip decided",
    "train/bad_updates": "updates of this step skipped because loss or gradient was not finite",
    "train/trained_tokens": (
        "response tokens in the loss and its denominator, mean over the updates of the step"
    ),
    "train/logprob_gap_mean": (
        "mean |sampler - learner| log-prob of the sampled tokens on the prompt they were sampled"
        " on, first update"
    ),
    "train/logprob_gap_max": (
        "largest |sampler - learner| log-prob of a sampled token, first update"
    ),
    "train/logprob_gap_tokens": (
        "tokens that the gap between sampler and learner was measured on: those of the first"
        " update, and all that were scored before it"
    ),
    "train/rollout_is_mean": (
        "mean importance weight of the learner's policy against the sampler's, after the cap"
    ),
    "train/frac_rollout_is_capped": (
        "share of trained tokens whose importance weight against the sampler is at the cap"
    ),
    "train/frac_rollout_is_masked": (
        "share of trained tokens that the importance ratio against the sampler masks"
    ),
    "train/router_balance": (
        "load-balancing loss of models with experts, before its coefficient; 1 if even"
    ),
    "train/router_entropy": (
        "mean entropy of the router's distribution over experts, nats, over real tokens and layers"
    ),
    "train/router_max_load": (
        "choices of the most chosen expert, as a multiple of an even share; mean over layers"
    ),
    "train/router_frac_differ": (
        "share of response tokens and layers in which the learner's router would choose other"
        " experts than the sampler's did (train.router_replay)"
    ),
    "rollout/generated_tokens": "tokens sampled in this step",
    "rollout/mean_tokens": "mean response length",
    "rollout/frac_truncated": "share of responses cut at max_new_tokens",
    "rollout/questions_left_out": (
        "questions of the batch that were not asked (config.mining.skip_below)"
    ),
    "rollout/frac_templated": "share of rollouts sampled under a template",
    "rollout/sampling_rounds": "batches of questions asked in this step by dynamic sampling",
    "rollout/wasted_rollouts": "rollouts of this step that dynamic sampling left out of the update",
    "rollout/frac_zero_advantage": (
        "share of groups whose advantages are all zero: nothing is learnt from them"
    ),
    "rollout/frac_zero_advantage_other": (
        "share of zero-advantage groups among the questions that were not hard in the last epoch"
    ),
    "reward/mean": "mean answer score",
    "reward/mean_plain": "mean answer score of untemplated rollouts",
    "reward/mean_templated": "mean answer score of templated rollouts",
    "reward/format": "share of responses with a closed final box",
    "reward/by_name/NAME": (
        "mean score of a reward that config.reward.fn lists among others, before its weight"
    ),
    "reward/frac_time_out": "share of answers that the verifier could not judge in time",
    "reward/frac_error": "share of answers whose verification failed",
    "hard/questions_step": "hard questions found in this step",
    "hard/questions_epoch": "hard questions found so far in this epoch",
    "hard/frac_zero_advantage": (
        "share of zero-advantage groups among the questions that were hard in the last epoch"
    ),
    "hard/frac_easier": (
        "share of the questions that were hard in the last epoch with a plain success now"
    ),
    **{f"hard/{name}": meaning for name, meaning in question_history.STATS.items()},
    "distill/frac_masked_low": (
        "share of templated tokens with a density ratio below the lower bound"
    ),
    "distill/frac_masked_high": (
        "share of templated tokens with a density ratio above the upper bound"
        " (distill.mode=truncated: the cap)"
    ),
    "distill/ratio_p05": "5 % quantile of the density ratio",
    "distill/ratio_p50": "median of the density ratio",
    "distill/ratio_p95": "95 % quantile of the density ratio",
    "distill/effective_sample_frac": "(sum w)^2 / (n sum w^2) of the distillation weights",
    "distill/frac_right_masked": (
        "share of the tokens of templated responses with a positive advantage that get weight 0"
    ),
    "distill/frac_templated_tokens": "share of trained tokens that were sampled under a template",
    **{f"gepa/{name}": meaning for name, meaning in STATS.items()},
    **{f"gepa/{name}": meaning for name, meaning in api.STATS.items()},
    "gepa/journals_set_aside": (
        "journals of this phase that did not belong to it and were ignored"
    ),
    "gepa/skipped": "1 where the prompt phase was skipped: fewer hard questions than gepa.min_hard",
    "gepa/hard_questions": "hard questions of the epoch that ended",
    "gepa/generated_tokens": "tokens sampled in this prompt phase, reflection included",
    "eval/accuracy": (
        "mean answer score on the held-out questions, on plain prompts unless eval.template=best"
    ),
    "eval/nll": (
        "mean negative log-likelihood of the response tokens of the held-out rows, nats, in"
        " supervised training"
    ),
    "eval/format": "share of held-out responses with a closed final box",
    "eval/by_name/NAME": (
        "mean score, on held-out questions, of a reward that config.reward.fn lists among others,"
        " before its weight"
    ),
    "eval/mean_tokens": "mean response length in evaluation",
    "eval/frac_truncated": "share of evaluation responses cut at max_new_tokens",
    "ledger/generated_tokens": (
        "tokens sampled since the run began: training, GEPA and reflection, not evaluation"
    ),
    "ledger/rollouts": "rollouts sampled since the run began: training and GEPA, not evaluation",
    "ledger/flops": (
        "estimated FLOPs since the run began: sampling, scoring and updates, not evaluation"
    ),
    **{
        f"ledger/{phase}_{amount}": f"{what} since the run began; {where}"
        for phase, where in PHASES.items()
        for amount, what in AMOUNTS.items()
    },
    **{
        f"time/ledger_{phase}_s": f"seconds since the run began; {where}"
        for phase, where in PHASES.items()
    },
    "time/pretraining_s": "seconds pretraining the built-in base model",
    "time/rollout_s": "seconds sampling for training",
    "time/reward_s": "seconds verifying answers",
    "time/score_s": "seconds taking old, reference and templated log-probs",
    "time/update_s": "seconds updating",
    "time/gepa_s": "seconds of the prompt phase",
    "time/eval_s": "seconds evaluating",
    "time/compile_s": "seconds that XLA compiled, inside the other times",
    "perf/tokens_per_s": "tokens sampled in this step per second of sampling",
    "perf/frac_slots_busy": (
        "share of the slots computed in decoding that were in use; the rest is wasted"
    ),
    "perf/decode_steps": (
        "steps of decoding, of training, prompt phase and evaluation since the last row"
    ),
    "perf/frac_prompt_tokens_computed": (
        "prompt tokens computed, padding included, over those of distinct prompts"
    ),
    "perf/frac_prefill_time": "share of the time of sampling that went into prompts",
    "perf/frac_tail_time": (
        "share of the time of sampling in which no rollout was left to begin: until the last token"
        " of the longest"
    ),
    "time/compile_ahead_s": "seconds compiling the sampler's programs at the start",
    "perf/frac_row_tokens_real": "share of the tokens computed in the update that are not padding",
    "perf/compiles": "programs compiled since the process began",
}


def is_known(name: str) -> bool:
    """Whether the metric has a meaning in METRICS."""
    return meaning(name) is not None


def meaning(name: str) -> str | None:
    """The meaning of a metric; None if METRICS does not list it.

    eval/SET/x of one among several evaluation sets is listed as eval/x, and every */by_name/x as
    */by_name/NAME.
    """
    kind, *parts = name.split("/")
    of = ""
    if kind == "eval" and len(parts) > 1 and parts[0] != "by_name":
        of = f"{parts.pop(0)}: "
    if len(parts) > 1 and parts[-2] == "by_name":
        of += f"{parts.pop()}: "
        parts.append("NAME")
    text = METRICS.get("/".join((kind, *parts)))
    return None if text is None else of + text


def ledger_metrics(ledger: Ledger) -> dict[str, float]:
    """What each phase has cost since the run began, so far as it has happened."""
    values: dict[str, float] = {}
    for phase in PHASES:
        row = ledger.costs.get(phase, {})
        values |= {f"ledger/{phase}_{amount}": row[amount] for amount in AMOUNTS if amount in row}
        values |= {f"time/ledger_{phase}_s": row["seconds"]} if "seconds" in row else {}
    return values


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """rollout/* and reward/* of a batch of scored rollouts."""
    lengths = np.array([len(r.completion.token_ids) for r in rollouts])
    score = np.array([r.verdict.answer_score for r in rollouts])
    templated = np.array([r.templated for r in rollouts])
    statuses = [r.verdict.status for r in rollouts]
    values = {
        "rollout/generated_tokens": lengths.sum(),
        "rollout/mean_tokens": lengths.mean(),
        "rollout/frac_truncated": np.mean([not r.completion.stopped for r in rollouts]),
        "rollout/frac_templated": templated.mean(),
        "reward/mean": score.mean(),
        "reward/format": np.mean([r.verdict.format_score for r in rollouts]),
        "reward/frac_time_out": statuses.count("time_out") / len(statuses),
        "reward/frac_error": statuses.count("error") / len(statuses),
    } | {f"reward/{name}": value for name, value in metrics.reward_means(rollouts).items()}
    for name, which in (("plain", ~templated), ("templated", templated)):
        if which.any():
            values[f"reward/mean_{name}"] = score[which].mean()
    return {k: float(v) for k, v in values.items()}


def of_updates(
    scored: Mapping[str, float], updates: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Metrics of a step's updates and of the scoring before them; each has measured the
    sampler's gap on other tokens.
    """
    values = dict(scored) | mean_of(updates)
    measured = [s for s in (scored, *updates) if "train/logprob_gap_tokens" in s]
    if measured:
        tokens = [s["train/logprob_gap_tokens"] for s in measured]
        values["train/logprob_gap_mean"] = float(
            np.average([s["train/logprob_gap_mean"] for s in measured], weights=tokens)
        )
        values["train/logprob_gap_max"] = max(s["train/logprob_gap_max"] for s in measured)
        values["train/logprob_gap_tokens"] = sum(tokens)
    return values


def mean_of(stats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each value over those updates of a step that have it; bad updates are summed."""
    names = dict.fromkeys(k for s in stats for k in s)
    values = {k: float(np.mean([s[k] for s in stats if k in s])) for k in names}
    if stats:
        values["train/bad_updates"] = float(sum(s["train/bad_updates"] for s in stats))
    return values
