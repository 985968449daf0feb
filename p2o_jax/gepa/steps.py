"""The state of a GEPA phase and its pure steps: select, propose, gate (`gepa.gate`) and promote
make one iteration (algorithm step 3).

A step takes the state and the results of the outside world (outcomes, replies), and returns the
next state. No random state is kept: the generator of an iteration is named by (seed, iteration).
"""

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from p2o_jax import config
from p2o_jax.gepa import cover, draws, filters, leaks, pareto
from p2o_jax.types import Question, Reply

Stage = Literal["select", "propose", "gate", "promote", "done"]
Missing = Literal["overlong_reflection", "no_reply", "perfect"]  # why there is no reply


@dataclass(frozen=True)
class SearchSetup:
    """What is constant during a phase."""

    train: tuple[Question, ...]
    dev: tuple[Question, ...]
    cfg: config.GepaConfig
    seed: str
    budget: int  # rollouts
    common: frozenset[tuple[str, ...]] = frozenset()  # wording shared by the questions, not a leak
    success_above: float = 0.5  # a score above it is a success


@dataclass(frozen=True)
class NoReply:
    """Takes the place of a reply: the prompt was not sent, or the reflecting endpoint did not
    reply.
    """

    reason: Missing


@dataclass(frozen=True)
class Proposal:
    """A parent with a minibatch, and its result so far. `outcome` is empty while the proposal is
    undecided.
    """

    parent: int
    minibatch: tuple[int, ...]  # indices into train
    before: float = 0.0  # the parent's score, summed over the minibatch
    after: float = 0.0  # the child's score
    more: tuple[int, ...] = ()  # further train questions on which the two are to be compared
    minibatches: int = 1  # on which they are compared, `more` included
    text: str = ""
    outcome: str = ""


@dataclass(frozen=True)
class SearchState:
    """The state of a phase: candidates with their scores, the current iteration, and what was
    spent.
    """

    templates: tuple[str, ...]
    parents: tuple[int | None, ...]
    score_ZN: tuple[tuple[float, ...], ...]  # [candidate][dev question]
    iteration: int = 0
    stage: Stage = "select"
    wave: tuple[Proposal, ...] = ()  # proposals of this iteration
    used: tuple[int, ...] = ()  # train questions used in a minibatch, sorted
    generated: int = 0  # rollouts
    charged: int = 0  # rollouts charged to the budget
    idle: int = 0  # iterations since a child was promoted
    # one per proposal of finished iterations, and per template that the phase could not begin with
    events: tuple[Mapping[str, Any], ...] = ()


def to_json(state: SearchState) -> dict[str, Any]:
    """Returns the state as a JSON value; `from_json` inverts it."""
    return asdict(state)


def from_json(value: Mapping[str, Any]) -> SearchState:
    """Returns the state that `to_json` was given."""
    kept: dict[str, Any] = {f.name: value[f.name] for f in fields(SearchState)}
    kept |= {name: tuple(kept[name]) for name in ("templates", "parents", "used", "events")}
    kept["score_ZN"] = tuple(map(tuple, kept["score_ZN"]))
    kept["wave"] = tuple(
        Proposal(**{**p, "minibatch": tuple(p["minibatch"]), "more": tuple(p["more"])})
        for p in kept["wave"]
    )
    return SearchState(**kept)


def affordable(phase: SearchSetup) -> int:
    """Returns how many templates the budget can evaluate on dev; any number where that is free."""
    if not phase.cfg.charge_all:
        return sys.maxsize
    return phase.budget // (len(phase.dev) * phase.cfg.rollouts_per_eval)


def init(
    phase: SearchSetup,
    templates: Sequence[str],
    dev_scores: Sequence[Sequence[float]],
    num_evaluated: int,
    dropped: Sequence[tuple[str, str]] = (),
) -> SearchState:
    """Returns the state with the candidates that the phase begins with, evaluated on dev (step 2).

    ▲ With `charge_all` these rollouts are charged; the released code does not charge them, and
    begins with the empty template alone.

    Args:
        phase: constants of the phase.
        templates: the empty one first.
        dev_scores: [candidate][dev question].
        num_evaluated: of these scores, how many were not known before.
        dropped: templates that were left out, with their outcomes.
    """
    spent = num_evaluated * phase.cfg.rollouts_per_eval
    unused = {"iteration": None, "parent": None, "before": None, "after": None, "minibatch": []}
    state = SearchState(
        tuple(templates),
        (None,) * len(templates),
        tuple(map(tuple, dev_scores)),
        generated=spent,
        charged=spent if phase.cfg.charge_all else 0,
        events=tuple({**unused, "text": text, "outcome": outcome} for text, outcome in dropped),
    )
    return _checked(phase, state)


def select(phase: SearchSetup, state: SearchState) -> SearchState:
    """Draws a wave of parents, each with its own minibatch (steps 3a, 3b). The phase is done if the
    budget allows none.

    ▲ With `charge_all` the wave is as wide as the budget allows, counting both evaluations of every
    minibatch and one promotion.
    """
    if state.stage == "done":
        return state
    assert state.stage == "select", state.stage
    cfg, width = phase.cfg, phase.cfg.parents
    if cfg.charge_all:
        pair = 2 * min(cfg.minibatch, len(phase.train)) * cfg.rollouts_per_eval
        promotion = len(phase.dev) * cfg.rollouts_per_eval
        width = min(width, (phase.budget - state.charged - promotion) // pair)
    if width < 1:
        return replace(state, stage="done")
    rng = random.Random(f"{phase.seed}/select/{state.iteration}")
    weights = pareto.weights(state.score_ZN, bool(cfg.count_unsolved_fronts))
    used, wave = set(state.used), []
    for parent in draws.parents(rng, weights, width, bool(cfg.fill_width)):
        taken = {tuple(sorted(p.minibatch)) for p in wave if p.parent == parent}
        drawn = draws.minibatch(rng, used, len(phase.train), cfg.minibatch, taken)
        used |= set(drawn)
        wave.append(Proposal(parent, drawn))
    return replace(state, stage="propose", wave=tuple(wave), used=tuple(sorted(used)))


def propose(
    phase: SearchSetup,
    state: SearchState,
    before: Sequence[float],
    replies: Sequence[Reply | NoReply],
    count_tokens: Callable[[str], int],
    fits: Callable[[str, Question], bool] = lambda template, question: True,
    spells_special: Callable[[str], bool] = lambda text: False,
) -> SearchState:
    """Sets the text of every proposal, or the reason why it has none (step 3c).

    Args:
        phase: constants of the phase.
        state: the state after `select`.
        before: score of each proposal's parent, summed over the minibatch.
        replies: reply of the reflecting model to each proposal.
        count_tokens: tokens of a text, as the reflecting model counts them.
        fits: whether a question fits the prompt limit under a template.
        spells_special: whether a text spells a special token.
    """
    assert state.stage == "propose", state.stage
    wave: list[Proposal] = []
    for proposal, score, reply in zip(state.wave, before, replies, strict=True):
        if isinstance(reply, NoReply):
            wave.append(replace(proposal, before=score, outcome=reply.reason))
            continue
        taken = [*state.templates, *(p.text for p in wave if not p.outcome)]
        text, problem = filters.extract(reply, phase.cfg, count_tokens, taken, spells_special)
        problem = problem or _misfit(phase, state, proposal, text, fits)
        wave.append(replace(proposal, before=score, text=text, outcome=problem))
    return spend(
        phase, replace(state, stage="gate", wave=tuple(wave)), sum(len(p.minibatch) for p in wave)
    )


def _misfit(
    phase: SearchSetup,
    state: SearchState,
    proposal: Proposal,
    text: str,
    fits: Callable[[str, Question], bool],
) -> str:
    """Returns why the text may not become a template of this phase; empty if it may."""
    minibatch = [phase.train[i] for i in proposal.minibatch]
    if phase.cfg.leak_guard and leaks.leaks(
        text, minibatch, phase.common, _ancestor(state, proposal.parent)
    ):
        return "leak"
    return (
        ""
        if all(fits(text, question) for question in (*phase.train, *phase.dev))
        else "overlong_prompt"
    )


def _ancestor(state: SearchState, candidate: int) -> str:
    """Returns the template that the phase began with and the candidate descends from."""
    while (parent := state.parents[candidate]) is not None:
        candidate = parent
    return state.templates[candidate]


def undecided(state: SearchState) -> list[Proposal]:
    """Returns the undecided proposals, in order. `gate` and `promote` take the outcomes of
    these.
    """
    return [p for p in state.wave if not p.outcome]


def promote(
    phase: SearchSetup,
    state: SearchState,
    dev_scores: Sequence[Sequence[float]],
) -> SearchState:
    """Ends the iteration: accepted children become candidates, with their parent and dev scores
    (step 3e).

    The phase is done if the reflecting endpoint replied to none of the iteration's prompts. An
    iteration in which all parents were perfect counts like any other without an accepted child: its
    rollouts are charged, and patience counts it.
    """
    assert state.stage == "promote", state.stage
    accepted, rows = undecided(state), iter(dev_scores)
    sent = [p for p in state.wave if p.outcome not in ("perfect", "overlong_reflection")]
    unanswered = bool(sent) and all(p.outcome == "no_reply" for p in sent)
    state = spend(phase, state, len(accepted) * len(phase.dev))
    events, number = [], len(state.templates)
    for p in state.wave:
        event: dict[str, Any] = {
            "iteration": state.iteration,
            "parent": p.parent,
            "text": p.text,
            "outcome": p.outcome or "accepted",
        }
        evaluated = p.outcome in ("", "gate", "budget")
        event |= {
            "before": p.before,
            "after": p.after if evaluated else None,
            "minibatch": [phase.train[i].id for i in p.minibatch],
            "minibatches": p.minibatches,
        }
        if not p.outcome:
            row = tuple(next(rows))
            event |= {
                "candidate": number,
                "dev_score": sum(row) / len(row),
                "rollouts": state.generated,
            }
            state = replace(state, score_ZN=(*state.score_ZN, row))
            number += 1
        events.append(event)
    state = replace(
        state,
        templates=(*state.templates, *(p.text for p in accepted)),
        parents=(*state.parents, *(p.parent for p in accepted)),
        events=(*state.events, *events),
        iteration=state.iteration + 1,
        idle=0 if accepted else state.idle + 1,
        stage="select",
        wave=(),
    )
    return replace(state, stage="done") if unanswered else _checked(phase, state)


def spend(
    phase: SearchSetup, state: SearchState, num_pairs: int, free: bool = False
) -> SearchState:
    """Returns the state with these rollouts added to the counts. Without `charge_all` the first two
    iterations are free (step 3f).
    """
    rollouts = num_pairs * phase.cfg.rollouts_per_eval
    free = free or (not phase.cfg.charge_all and state.iteration < 2)
    return replace(
        state,
        generated=state.generated + rollouts,
        charged=state.charged + (0 if free else rollouts),
    )


def _checked(phase: SearchSetup, state: SearchState) -> SearchState:
    """Marks the state as done if budget, iterations, patience or questions are exhausted. The
    faithful budget applies from iteration 2 on.

    ▲ A phase also ends after `max_iterations`, and after `patience` consecutive iterations without
    a promoted child, or initial ones without a solved dev question.
    """
    cfg = phase.cfg
    unproductive = max(
        state.idle, 0 if cover.covered(state.score_ZN, phase.success_above) else state.iteration
    )
    done = (
        not phase.train
        or (state.charged >= phase.budget and (bool(cfg.charge_all) or state.iteration >= 2))
        or (bool(cfg.max_iterations) and state.iteration >= (cfg.max_iterations or 0))
        or (bool(cfg.patience) and unproductive >= (cfg.patience or 0))
    )
    return replace(state, stage="done") if done else state
