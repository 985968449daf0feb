"""Which questions of a batch are hard (algorithm step 4)."""

import zlib
from collections.abc import Sequence

import numpy as np

from p2o_jax import config
from p2o_jax.p2o.value import Posteriors
from p2o_jax.state import RunState
from p2o_jax.types import Question, Rollout

ASKED_AGAIN = 4  # epochs within which every question is asked, whatever its group is worth


def outcomes(rollouts: Sequence[Rollout], group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(solved_QG, templated_QG) of rollouts that lie group by group, as bool arrays."""
    solved = np.array([r.succeeded for r in rollouts])
    templated = np.array([r.templated for r in rollouts])
    return solved.reshape(-1, group_size), templated.reshape(-1, group_size)


def find_hard(
    questions: Sequence[Question],
    solved_QG: np.ndarray,
    templated_QG: np.ndarray,
    cfg: config.MiningConfig,
) -> tuple[str, ...]:
    """The ids of the hard questions, in batch order, each once: at most `max_successes` of their
    rollouts succeeded, and not all.

    ▲ `judge_on="plain"` looks at untemplated rollouts only, as "solved with a crutch" is not
    solved; a question that has none is judged by all of its rollouts. "all" is what the released
    code does. Where fewer than G are judged, as many fewer may succeed: with 1 of 6 none of two, as
    otherwise a question solved half of the time stays hard.
    """
    assert cfg.judge_on is not None, "config.mining must be resolved"
    judged_QG = np.ones_like(templated_QG, bool)
    if cfg.judge_on == "plain":
        judged_QG = ~templated_QG | templated_QG.all(axis=1, keepdims=True)
    successes: dict[str, int] = {}  # by question, over all of its groups
    tried: dict[str, int] = {}
    for question, solved_G, judged_G in zip(questions, solved_QG, judged_QG, strict=True):
        successes[question.id] = successes.get(question.id, 0) + int((solved_G & judged_G).sum())
        tried[question.id] = tried.get(question.id, 0) + int(judged_G.sum())
    size = solved_QG.shape[1]
    few = {
        name
        for name, count in successes.items()
        if count * size <= cfg.max_successes * min(tried[name], size)
    }
    hard = {name for name in few if successes[name] == 0 or successes[name] < tried[name]}
    return tuple(name for name in successes if name in hard)


def worth_asking(
    questions: Sequence[Question], state: RunState, epoch: int, cfg: config.Config
) -> list[Question]:
    """Those questions of a batch whose group is likely enough to be informative.

    ▲ `mining.skip_below` is the share of the batch's mean chance below which a question is left
    out. Questions that have not been asked yet stay, and every question is asked in one of
    `ASKED_AGAIN` epochs, which its id decides.
    """
    if not cfg.mining.skip_below or epoch == 0:
        return list(questions)
    posteriors = Posteriors(state.history.recent)
    plain = ("",) * cfg.rollout.group_size
    chances = [
        posteriors.informative(q.id, state.assignment.templates.get(q.id, plain)) for q in questions
    ]
    least = cfg.mining.skip_below * sum(chances) / len(chances)
    return [
        q
        for q, chance in zip(questions, chances, strict=True)
        if chance >= least or q.id not in state.history.recent or _is_asked_again(q.id, epoch)
    ]


def _is_asked_again(question_id: str, epoch: int) -> bool:
    return (zlib.crc32(question_id.encode()) + epoch) % ASKED_AGAIN == 0


def still_hard(
    batch: Sequence[Question], asked: Sequence[Question], last_hard_ids: Sequence[str]
) -> tuple[str, ...]:
    """The ids of the questions that were hard in the last epoch and were not asked."""
    known = {q.id for q in asked}
    hard = set(last_hard_ids)
    return tuple(q.id for q in batch if q.id in hard and q.id not in known)


def counts(
    batch: Sequence[Question],
    asked: Sequence[Question],
    hard_now: Sequence[str],
    hard_ids: Sequence[str],
) -> dict[str, float]:
    """Hard questions of a step and of its epoch so far, and questions of the batch left out."""
    return {
        "hard/questions_step": len(hard_now),
        "hard/questions_epoch": len(hard_ids),
        "rollout/questions_left_out": len({q.id for q in batch} - {q.id for q in asked}),
    }


def with_extra_groups(
    questions: Sequence[Question], last_hard_ids: Sequence[str], cfg: config.MiningConfig
) -> list[Question]:
    """The questions of a step, and after them those that the last epoch found hard as often again
    as `extra_plain_groups` says.

    ▲ A question's further groups are plain (`assign.prompts_for`) and have their own mean reward,
    but all of its groups decide whether it is hard.
    """
    hard = set(last_hard_ids)
    return [
        *questions,
        *(q for q in questions for _ in range(cfg.extra_plain_groups) if q.id in hard),
    ]


def outcome_metrics(
    questions: Sequence[Question],
    solved_QG: np.ndarray,
    templated_QG: np.ndarray,
    zero_advantage_Q: np.ndarray,
    last_hard_ids: Sequence[str],
) -> dict[str, float]:
    """Shares of groups that teach nothing: of all, of those hard in the last epoch, of the
    others; and the hard ones' plain successes.
    """
    hard = set(last_hard_ids)
    was_hard_Q = np.array([q.id in hard for q in questions])
    values = {"rollout/frac_zero_advantage": float(zero_advantage_Q.mean())}
    if not was_hard_Q.all():
        values["rollout/frac_zero_advantage_other"] = float(zero_advantage_Q[~was_hard_Q].mean())
    if was_hard_Q.any():
        values["hard/frac_zero_advantage"] = float(zero_advantage_Q[was_hard_Q].mean())
    judged_Q = was_hard_Q & ~templated_QG.all(axis=1)
    if judged_Q.any():
        solved_plainly_Q = np.any(solved_QG & ~templated_QG, axis=1)
        values["hard/frac_easier"] = float(np.mean(solved_plainly_Q[judged_Q]))
    return values
