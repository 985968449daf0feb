"""▲ Templates chosen by what they do in training (`assign.bandit`): discounted Thompson sampling,
at no extra generation.

Every template of the cover has a Beta posterior of its success on hard questions: Jeffreys' prior
and the evidence so far. That starts as the dev score, with the weight of `bandit_prior` rollouts,
and fades by `bandit_discount` with every policy step, as the policy moves.
"""

import functools
import random
from collections.abc import Sequence

from p2o_jax import config
from p2o_jax.p2o.group_draw import candidates, draw_group
from p2o_jax.state import Assignment, Bandit
from p2o_jax.types import Question, Rollout, SearchResult

_JEFFREYS = 0.5


def start(
    result: SearchResult | None, assignment: Assignment, before: Bandit, cfg: config.AssignConfig
) -> Bandit:
    """The bandit for a new assignment: the arms of its cover, dev scores as priors; an empty one
    where it is off or nothing is assigned.

    The one before where an assignment is kept without a new result.

    A dev question may get the templates that solve it, or all if none does; any other question all:
    as `assign` does.
    """
    if not cfg.bandit or not assignment.templates:
        return Bandit()
    if result is None:
        return before
    means = [sum(result.score_ZN[z]) / max(len(result.score_ZN[z]), 1) for z in result.cover]
    columns = {name: n for n, name in enumerate(result.dev_ids)}
    members = {name: tuple(candidates(result, columns, name)) for name in assignment.templates}
    return Bandit(
        templates=tuple(result.templates[z] for z in result.cover),
        successes=tuple(cfg.bandit_prior * mean for mean in means),
        failures=tuple(cfg.bandit_prior * (1 - mean) for mean in means),
        members=members,
    )


def draw(
    bandit: Bandit,
    assignment: Assignment,
    questions: Sequence[Question],
    cfg: config.AssignConfig,
    seed: str,
) -> Assignment:
    """The assignment with the templates of these questions drawn anew; the one given where there is
    no bandit.

    Each place in a group takes the template whose draw from its posterior is highest (one draw for
    the whole group with `same_template_in_group`); plain places stay plain. Depends on (posterior,
    seed, question), not on the batch.
    """
    drawn = dict(assignment.templates)
    for question in questions if bandit.templates else ():
        if question.id not in assignment.templates:
            continue
        rng = random.Random(f"{seed}/bandit/{question.id}")
        draw = functools.partial(_best_templates, bandit, bandit.members[question.id], rng)
        group_size = len(assignment.templates[question.id])
        drawn[question.id] = draw_group(group_size, cfg, draw)
    return Assignment(drawn)


def _best_templates(
    bandit: Bandit, members: Sequence[int], rng: random.Random, count: int
) -> list[str]:
    return [bandit.templates[_best(bandit, members, rng)] for _ in range(count)]


def _best(bandit: Bandit, members: Sequence[int], rng: random.Random) -> int:
    return (
        max(
            (rng.betavariate(bandit.successes[i] + _JEFFREYS, bandit.failures[i] + _JEFFREYS), -i)
            for i in members
        )[1]
        * -1
    )


def update(bandit: Bandit, rollouts: Sequence[Rollout], cfg: config.AssignConfig) -> Bandit:
    """The bandit after a policy step: what it knew fades, and the step's rollouts of hard
    questions are added.
    """
    if not bandit.templates:
        return bandit
    places = {template.strip(): i for i, template in enumerate(bandit.templates)}
    successes = [n * cfg.bandit_discount for n in bandit.successes]
    failures = [n * cfg.bandit_discount for n in bandit.failures]
    for rollout in rollouts:
        arm = places.get(rollout.prompt.template.strip())
        if arm is not None and rollout.prompt.question.id in bandit.members:
            successes[arm] += rollout.succeeded
            failures[arm] += not rollout.succeeded
    return Bandit(bandit.templates, tuple(successes), tuple(failures), bandit.members)
