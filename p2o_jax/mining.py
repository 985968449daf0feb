"""Which questions of a batch are hard (algorithm step 4)."""

from collections.abc import Sequence

import numpy as np

from p2o_jax import config
from p2o_jax.records import Question

SUCCESS = 1e-6  # a score above this is a success, as in the released code


def find_hard(questions: Sequence[Question], score_QG: np.ndarray, templated_QG: np.ndarray, cfg: config.Mining) -> tuple[str, ...]:
    """The ids of the hard questions, in batch order, each once: no rollout succeeded.

    With `include_near_hard` also those with exactly one success among at least two rollouts.
    ▲ `judge_on="plain"` looks at untemplated rollouts only, as "solved with a crutch" is not solved; a question that has
    none is judged by all of its rollouts. "all" is what the released code does.
    """
    assert cfg.judge_on is not None, "config.mining must be resolved"
    judged_QG = np.ones_like(templated_QG, bool)
    if cfg.judge_on == "plain":
        judged_QG = ~templated_QG | templated_QG.all(axis=1, keepdims=True)
    successes_Q = ((score_QG > SUCCESS) & judged_QG).sum(axis=1)
    hard_Q = successes_Q == 0
    if cfg.include_near_hard:
        hard_Q |= (successes_Q == 1) & (judged_QG.sum(axis=1) > 1)
    return tuple(dict.fromkeys(question.id for question, hard in zip(questions, hard_Q, strict=True) if hard))


def outcome_metrics(
    questions: Sequence[Question],
    score_QG: np.ndarray,
    templated_QG: np.ndarray,
    zero_advantage_Q: np.ndarray,
    last_hard_ids: Sequence[str],
) -> dict[str, float]:
    """Shares of groups that teach nothing, of all and of those that were hard in the last epoch; the latter's plain successes."""
    hard = set(last_hard_ids)
    was_hard_Q = np.array([q.id in hard for q in questions])
    values = {"rollout/frac_zero_advantage": float(zero_advantage_Q.mean())}
    if was_hard_Q.any():
        values["hard/frac_zero_advantage"] = float(zero_advantage_Q[was_hard_Q].mean())
    judged_Q = was_hard_Q & ~templated_QG.all(axis=1)
    if judged_Q.any():
        solved_plainly_Q = np.any((score_QG > SUCCESS) & ~templated_QG, axis=1)
        values["hard/frac_easier"] = float(np.mean(solved_plainly_Q[judged_Q]))
    return values
