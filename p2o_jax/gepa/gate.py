"""The gate of a GEPA iteration: which children beat their parents on their minibatches (algorithm
step 3d).
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import replace

from p2o_jax import config
from p2o_jax.gepa import draws
from p2o_jax.gepa.steps import Proposal, SearchSetup, SearchState, spend, undecided

_EPS = 1e-9  # sums of means over rollouts are not exact


def is_unbeatable(phase: SearchSetup, proposal: Proposal, before: float) -> bool:
    """Whether the gate would reject even a child with the best score, 1, on every question of the
    minibatch.
    """
    return not len(proposal.minibatch) - before >= _least_gain(phase.cfg)


def _least_gain(cfg: config.GepaConfig) -> float:
    """Returns the required gain of a child's score over its parent's, summed over the minibatch."""
    return cfg.acceptance_margin - _EPS if cfg.acceptance == "margin" else _EPS


def gate(phase: SearchSetup, state: SearchState, after: Sequence[float]) -> SearchState:
    """Rejects children that do not beat their parent on its minibatch (step 3d).

    They must have a strictly larger score, or one larger by `acceptance_margin`. ▲ With
    `max_minibatches` > 1, children that are neither worse nor better get a further minibatch, and
    the stage stays "gate" for `compare_more`.

    Args:
        phase: constants of the phase.
        state: the state after `propose`.
        after: score of each undecided child, summed over the minibatch.
    """
    assert state.stage == "gate", state.stage
    scores = iter(after)
    wave = tuple(p if p.outcome else replace(p, after=next(scores)) for p in state.wave)
    num_pairs = sum(len(p.minibatch) for p in undecided(state))
    state = spend(phase, replace(state, wave=wave), num_pairs, free=not phase.cfg.charge_all)
    return _with_more(phase, state)


def tied(state: SearchState) -> list[Proposal]:
    """Returns the proposals with a further minibatch, in order."""
    return [p for p in state.wave if p.more]


def compare_more(
    phase: SearchSetup, state: SearchState, before: Sequence[float], after: Sequence[float]
) -> SearchState:
    """Adds the scores of `tied` parents and children on their further minibatches, and decides as
    `gate` does.
    """
    assert state.stage == "gate", state.stage
    num_pairs = sum(len(p.more) for p in tied(state))
    scores = iter(zip(before, after, strict=True))
    wave = []
    for p in state.wave:
        if p.more:
            parent, child = next(scores)
            p = replace(
                p,
                minibatch=(*p.minibatch, *p.more),
                before=p.before + parent,
                after=p.after + child,
                more=(),
            )
        wave.append(p)
    state = spend(phase, replace(state, wave=tuple(wave)), num_pairs)
    state = spend(phase, state, num_pairs, free=not phase.cfg.charge_all)
    return _with_more(phase, state)


def _with_more(phase: SearchSetup, state: SearchState) -> SearchState:
    """Draws further minibatches for ties, of questions that the proposal does not have yet, as far
    as the budget allows them and one promotion; without any, decides the wave.
    """
    cfg = phase.cfg
    n = cfg.rollouts_per_eval
    left = phase.budget - state.charged - len(phase.dev) * n if cfg.charge_all else sys.maxsize
    rng = random.Random(f"{phase.seed}/more/{state.iteration}/{_most_minibatches(state)}")
    used, wave = set(state.used), []
    for p in state.wave:
        unseen = len(phase.train) - len(p.minibatch)
        size = min(cfg.minibatch, unseen)
        is_tie = not p.outcome and -_EPS <= p.after - p.before < _least_gain(cfg)
        if is_tie and p.minibatches < cfg.max_minibatches and size > 0 and 2 * size * n <= left:
            more = draws.further(rng, used, len(phase.train), size, set(p.minibatch))
            left -= 2 * size * n
            used |= set(more)
            p = replace(p, more=more, minibatches=p.minibatches + 1)
        wave.append(p)
    state = replace(state, wave=tuple(wave), used=tuple(sorted(used)))
    return state if tied(state) else _decided(phase, state)


def _most_minibatches(state: SearchState) -> int:
    return max((p.minibatches for p in state.wave), default=1)


def _decided(phase: SearchSetup, state: SearchState) -> SearchState:
    """Rejects what is not better. ▲ With `charge_all`, children with the largest gains take
    precedence if the budget does not suffice for all.
    """
    cfg = phase.cfg
    wave = [
        replace(p, outcome="gate")
        if not p.outcome and not p.after - p.before >= _least_gain(cfg)
        else p
        for p in state.wave
    ]
    if cfg.charge_all:
        affordable = max(phase.budget - state.charged, 0) // (
            len(phase.dev) * cfg.rollouts_per_eval
        )
        accepted = [i for i, p in enumerate(wave) if not p.outcome]
        for i in sorted(accepted, key=lambda i: (wave[i].before - wave[i].after, i))[affordable:]:
            wave[i] = replace(wave[i], outcome="budget")
    return replace(state, stage="promote", wave=tuple(wave))
