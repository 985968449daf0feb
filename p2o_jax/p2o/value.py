"""What it is worth to ask a question, or to search for templates: expected informative groups.

A group is informative when its rewards differ, as then it has advantages. Success is a Beta
posterior over a question's recent rollouts (`state.History.recent`), whose prior is shared: by all
questions that are usually solved, by all others, and by all questions asked under a template.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

from p2o_jax import config
from p2o_jax.state import RecentTallies, RunState, SliceRecord
from p2o_jax.types import SearchResult, template_id

SHARED = 8.0  # rollouts that the shared prior of plain success counts for
SHARED_TEMPLATED = 1.0  # the same of a template's success, which differs more between questions
# An informative group of templated rollouts against one of plain rollouts: in the toy world plain
# success rises after about eight times as many (docs/algorithm.md).
TEMPLATED_VALUE = 1 / 8
HORIZON = 4.0  # epochs for which a template is of use before its questions are internalised
NEW_SHARE = 0.5  # of the uncovered questions: covered by a slice that finds anything


class Beta(NamedTuple):
    """A Beta distribution of a success probability."""

    successes: float
    failures: float


Part = tuple[Beta, int]  # some of a group's rollouts, which share a prompt: success, and how many


def chance_informative(parts: Iterable[Part]) -> float:
    """The probability that a group has both successes and failures: 1 less that none succeeds and
    that all do, each a product over the parts of beta-binomial probabilities.
    """
    none = every = 1.0
    for (a, b), count in parts:
        for i in range(count):
            none *= (b + i) / (a + b + i)
            every *= (a + i) / (a + b + i)
    return max(0.0, 1.0 - none - every)


class Posteriors:
    """Posteriors of plain and templated success, given the tallies of all questions."""

    def __init__(self, tallies: RecentTallies):
        self._tallies = tallies
        plain = {name: by_template.get("", (0.0, 0.0)) for name, by_template in tallies.items()}
        self._often = {name for name, (solved, tried) in plain.items() if solved > tried / 2}
        self._plain_mean = {
            often: _mean(plain[name] for name in plain if (name in self._often) == often)
            for often in (False, True)
        }
        under: dict[str, list[tuple[float, float]]] = {}
        for by_template in tallies.values():
            for template, tally in by_template.items():
                under.setdefault(template, []).append(tally)
        self._template_mean = {template: _mean(of) for template, of in under.items()}

    def success(self, question_id: str, template: str = "") -> Beta:
        """The posterior of a question's success under a template, or plainly."""
        key = template_id(template)
        solved, tried = self._tallies.get(question_id, {}).get(key, (0.0, 0.0))
        if key:
            mean, weight = self._template_mean.get(key, 0.5), SHARED_TEMPLATED
        else:
            mean, weight = self._plain_mean[question_id in self._often], SHARED
        return Beta(mean * weight + solved, (1 - mean) * weight + tried - solved)

    def solved(self, question_id: str, template: str) -> bool:
        """Whether a recent rollout of the question under the template succeeded."""
        return self._tallies.get(question_id, {}).get(template_id(template), (0.0, 0.0))[0] > 0

    def informative(self, question_id: str, templates: Sequence[str]) -> float:
        """The chance that the question's group is informative, under these templates."""
        counts = {template: templates.count(template) for template in templates}
        return chance_informative(
            (self.success(question_id, template), count) for template, count in counts.items()
        )


def fruitless(covered: Sequence[float]) -> int:
    """Returns after how many slices, the latest in a row, no more questions were solved.

    Args:
        covered: share of dev questions that some template solves, before each slice and now.
    """
    return sum(share == covered[-1] for share in covered[:-1])


class Decision(NamedTuple):
    """The two numbers of a decision, in plain informative groups: what the next slice of search is
    expected to bring, and what training brings for the same tokens.
    """

    search: float
    training: float


@dataclass(frozen=True)
class Prospects:
    """What the decisions of a prompt phase rest on, constant during it."""

    hard: int  # questions
    plain: float  # mean chance that a plain group of a hard question is informative
    templated: float  # the same of a group under templates that solve it
    epoch_tokens: float  # generated for the rollouts of an epoch
    epochs_left: float
    fruitless: int  # latest slices in a row, of earlier phases, that covered nothing new
    slice_tokens: float  # generated in a slice so far, or an estimate


def prospects(state: RunState, steps_per_epoch: int, cfg: config.Config) -> Prospects:
    """What the prompt phase of a state can expect."""
    size, posteriors = cfg.rollout.group_size, Posteriors(state.history.recent)
    plain = [posteriors.informative(name, ("",) * size) for name in state.hard_ids]
    templated = [
        posteriors.informative(name, templates)
        for name, templates in state.assignment.templates.items()
        if any(posteriors.solved(name, template) for template in set(templates) if template)
    ]
    lengths = [state.history.tokens[name] for name in state.hard_ids]
    tokens, epochs = mean(lengths), state.step / steps_per_epoch
    epoch_tokens = state.ledger.costs["policy"]["generated_tokens"] / epochs
    left = cfg.train.epochs - epochs
    if limit := cfg.train.max_generated_tokens:
        left = min(left, (limit - state.ledger.total("generated_tokens")) / epoch_tokens)
    searching = sum(
        row.get("generated_tokens", 0.0)
        for phase, row in state.ledger.costs.items()
        if phase.startswith("gepa_")
    )
    proposal = 2 * cfg.gepa.minibatch * tokens + min(
        cfg.gepa.reflect_new_tokens, cfg.gepa.max_template_tokens
    )
    return Prospects(
        hard=len(state.hard_ids),
        plain=mean(plain),
        templated=mean(templated) if templated else 0.5,
        epoch_tokens=epoch_tokens,
        epochs_left=left,
        fruitless=state.slices.fruitless,
        slice_tokens=(
            searching / state.slices.count if state.slices.count else cfg.gepa.parents * proposal
        ),
    )


def decide(known: Prospects, covered: Sequence[float]) -> Decision:
    """Whether a further slice of search pays.

    After n fruitless slices a slice finds something with probability 1 / (1 + n), and then covers
    `NEW_SHARE` of what is left. Each question that it covers has a templated group per epoch, for
    `HORIZON` epochs or for the rest of the run, in place of a plain one. Training, the other use of
    the tokens, has the templates that there are.

    Args:
        known: of the phase.
        covered: share of the questions that some template solves, at the beginning of the phase and
            after each slice. If that has not grown, fruitless slices of earlier phases count as
            well.
    """
    num_fruitless = fruitless(covered)
    if num_fruitless == len(covered) - 1:
        num_fruitless += known.fruitless
    templated = TEMPLATED_VALUE * known.templated
    left = known.hard * (1 - covered[-1])
    advantage = max(0.0, templated - known.plain)
    gain = min(HORIZON, known.epochs_left) * left * NEW_SHARE * advantage / (1 + num_fruitless)
    epoch = known.hard * (
        covered[-1] * max(templated, known.plain) + (1 - covered[-1]) * known.plain
    )
    return Decision(gain, known.slice_tokens * epoch / known.epoch_tokens)


def worth(
    state: RunState, steps_per_epoch: int, cfg: config.Config
) -> Callable[[Sequence[float]], Decision | None]:
    """`decide` in the prompt phase of a state; no decision unless `gepa.schedule` is adaptive."""
    if cfg.gepa.schedule != "adaptive":
        return lambda covered: None
    return functools.partial(decide, prospects(state, steps_per_epoch, cfg))


def searched(before: SliceRecord, result: SearchResult | None) -> SliceRecord:
    """The record after a prompt phase."""
    if result is None:
        return before
    slices, num_fruitless = (int(result.stats[name]) for name in ("iterations", "fruitless"))
    if num_fruitless == slices:
        num_fruitless += before.fruitless
    return SliceRecord(before.count + slices, num_fruitless)


def _mean(tallies: Iterable[tuple[float, float]]) -> float:
    """Successes in all rollouts, as if there had been half of one in one more."""
    pairs = list(tallies)
    return (sum(s for s, _ in pairs) + 0.5) / (sum(n for _, n in pairs) + 1.0)
