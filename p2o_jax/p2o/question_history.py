"""The questions across epochs: what plain and templated rollouts solved, and who learnt to do
without the crutch.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from p2o_jax import config
from p2o_jax.state import Attempts, History, LearningStatus, RecentTallies
from p2o_jax.types import Question, Rollout, template_id

KEPT = 0.5  # of the weight of rollouts with every epoch, in recent tallies
NEGLIGIBLE = 0.2  # rollouts

STATS = {
    "num_ever": "questions that have been hard in some epoch so far",
    "num_internalised": (
        "questions that were hard and have had a plain success in a later epoch, and have not"
        " fallen back since"
    ),
    "num_newly_internalised": "questions internalised in the epoch that ended",
    "num_relapsed": (
        "internalised questions of which no plain rollout succeeded in the epoch that ended"
    ),
}


def advanced(
    history: History,
    epoch: int,
    rollouts: Sequence[Rollout],
    hard_ids: Collection[str],
    epoch_ends: bool,
) -> History:
    """The history after a policy step of this epoch; at the epoch's end with the fates of its
    questions, `hard_ids` being hard in it.
    """
    attempts = dict(history.attempts) if history.epoch == epoch else {}
    for rollout in rollouts:
        name, template = rollout.prompt.question.id, template_id(rollout.prompt.template)
        by_template = dict(attempts[name].by_template) if name in attempts else {}
        successes, tried = by_template.get(template, (0, 0))
        by_template[template] = (successes + rollout.succeeded, tried + 1)
        attempts[name] = Attempts(by_template)
    history = History(
        epoch,
        attempts,
        history.fates,
        {**history.tokens, **_mean_tokens(rollouts)},
        history.recent,
    )
    return _closed(history, set(hard_ids)) if epoch_ends else history


def _closed(history: History, hard: Collection[str]) -> History:
    fates = dict(history.fates)
    for name, attempts in history.attempts.items():
        solved, tried = attempts.by_template.get("", (0, 0))
        if name not in fates:
            if name in hard:
                fates[name] = LearningStatus(hard=history.epoch)
            continue
        fate = fates[name]
        if solved and not _is_internalised(fate):
            fates[name] = LearningStatus(
                fate.hard, internalised=history.epoch, relapsed=fate.relapsed
            )
        elif tried and not solved and _is_internalised(fate):
            fates[name] = LearningStatus(fate.hard, fate.internalised, relapsed=history.epoch)
    return replace(history, fates=fates, recent=_recent(history))


def _recent(history: History) -> RecentTallies:
    """The tallies with the attempts of the epoch that ends. Those before count `KEPT` as much."""
    recent: dict[str, dict[str, tuple[float, float]]] = {
        name: {t: (KEPT * s, KEPT * n) for t, (s, n) in by_template.items() if n > NEGLIGIBLE}
        for name, by_template in history.recent.items()
    }
    for name, attempts in history.attempts.items():
        known = recent.setdefault(name, {})
        for template, (solved, tried) in attempts.by_template.items():
            before = known.get(template, (0.0, 0.0))
            known[template] = (before[0] + solved, before[1] + tried)
    return recent


def known_scores(
    history: History, cfg: config.GepaConfig
) -> Callable[[str, Question], float | None]:
    """`score` of the epoch that ended, by template and question; nothing is known unless
    `gepa.schedule` is adaptive.
    """
    if cfg.schedule != "adaptive":
        return lambda template, question: None
    return functools.partial(score, history)


def score(history: History, template: str, question: Question) -> float | None:
    """What the rollouts of the epoch that ended say of a template on a question, None if there are
    none: the share of successes without a template; with one, 1 if it led to any success.
    """
    attempts = history.attempts.get(question.id)
    tally = attempts and attempts.by_template.get(template_id(template))
    if not tally:
        return None
    solved, tried = tally
    return float(solved > 0) if template else solved / tried


def _mean_tokens(rollouts: Sequence[Rollout]) -> dict[str, float]:
    lengths: dict[str, list[int]] = {}
    for rollout in rollouts:
        lengths.setdefault(rollout.prompt.question.id, []).append(len(rollout.completion.token_ids))
    return {name: sum(counts) / len(counts) for name, counts in lengths.items()}


def _is_internalised(fate: LearningStatus) -> bool:
    return fate.internalised > fate.relapsed


def stats(history: History) -> dict[str, float]:
    """STATS at the end of an epoch."""
    fates = history.fates.values()
    values = {
        "num_ever": len(fates),
        "num_internalised": sum(map(_is_internalised, fates)),
        "num_newly_internalised": sum(f.internalised == history.epoch for f in fates),
        "num_relapsed": sum(f.relapsed == history.epoch for f in fates),
    }
    return {name: float(values[name]) for name in STATS}


def rows(history: History, hard_ids: Collection[str]) -> list[dict[str, Any]]:
    """A row of questions.jsonl for each question of the epoch that ended: successes and
    rollouts, plain and by template, and its fate.
    """
    epoch_rows, hard = [], set(hard_ids)
    for name, attempts in history.attempts.items():
        templated = {t: list(n) for t, n in attempts.by_template.items() if t}
        fate = history.fates.get(name)
        epoch_rows.append(
            {
                "epoch": history.epoch,
                "question_id": name,
                "hard": name in hard,
                "plain": list(attempts.by_template.get("", (0, 0))),
                "templated": [sum(n[i] for n in templated.values()) for i in (0, 1)],
                "templates": templated,
                "first_hard_epoch": fate.hard if fate else None,
                "internalised_epoch": (
                    fate.internalised if fate and fate.internalised >= 0 else None
                ),
                "relapsed_epoch": fate.relapsed if fate and fate.relapsed >= 0 else None,
            }
        )
    return epoch_rows
