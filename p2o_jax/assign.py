"""Which rollout of a hard question gets which template in the next epoch (algorithm step 5 of the end of an epoch)."""

import random
from collections.abc import Sequence

from p2o_jax import config
from p2o_jax.records import Ask, Assignment, Question, SearchResult

WEIGHT_FLOOR = 1e-6
_SOLVED = 0.5  # as in gepa.cover: a dev score above this counts as solved


def assign(result: SearchResult, hard_ids: Sequence[str], group_size: int, cfg: config.Assign, seed: str) -> Assignment:
    """Templates for the whole group of each hard question, drawn from the greedy cover with replacement, by mean dev score.

    A dev question draws among the members that solve it, or all if none does; any other question among all. The last
    `plain_rollouts` of a group stay plain ▲. An empty cover assigns nothing. The draw depends on (seed, question), not on the order.
    """
    assert cfg.plain_rollouts is not None, "config.assign must be resolved"
    if not result.cover:
        return Assignment()
    num_plain = min(cfg.plain_rollouts, group_size)
    columns = {name: n for n, name in enumerate(result.dev_ids)}
    weights = {z: max(sum(result.score_ZN[z]) / len(result.score_ZN[z]), WEIGHT_FLOOR) for z in result.cover}
    templates = {}
    for name in hard_ids:
        members = list(result.cover)
        if name in columns:
            members = [z for z in members if result.score_ZN[z][columns[name]] > _SOLVED] or members
        num_draws = 1 if cfg.same_template_in_group else group_size - num_plain
        drawn = random.Random(f"{seed}/assign/{name}").choices(members, [weights[z] for z in members], k=num_draws)
        if cfg.same_template_in_group:
            drawn *= group_size - num_plain
        templates[name] = (*(result.templates[z] for z in drawn), *[""] * num_plain)
    return Assignment(templates)


def asks_for(questions: Sequence[Question], assignment: Assignment, group_size: int, name: str) -> list[Ask]:
    """The asks of a batch, all of a question's group before the next question's; unassigned questions are asked plainly.

    An ask is named by (name, question, place in the group), whatever else is in the batch.
    """
    plain = ("",) * group_size
    asks = []
    for question in questions:
        templates = assignment.templates.get(question.id, plain)
        assert len(templates) == group_size, f"{len(templates)} templates assigned to question {question.id}, group size {group_size}"
        asks += [Ask(question, template, f"{name}/{question.id}/{g}") for g, template in enumerate(templates)]
    return asks
