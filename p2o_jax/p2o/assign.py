"""Which rollout of a hard question gets which template in the next epoch (algorithm step 5 of
the end of an epoch).
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from p2o_jax import config
from p2o_jax.state import Assignment, RunState
from p2o_jax.types import Question, SearchResult, TemplatedQuestion

WEIGHT_FLOOR = 1e-6


def assign(
    result: SearchResult,
    hard_ids: Sequence[str],
    group_size: int,
    cfg: config.AssignConfig,
    seed: str,
) -> Assignment:
    """Templates for the whole group of each hard question, drawn from the greedy cover with
    replacement, by mean dev score.

    A dev question draws among the members that solve it, or all if none does; any other question
    among all. The last `plain_rollouts` of a group stay plain ▲. An empty cover assigns nothing.
    The draw depends on (seed, question), not on the order.
    """
    assert cfg.plain_rollouts is not None, "config.assign must be resolved"
    if not result.cover:
        return Assignment()
    columns = {name: n for n, name in enumerate(result.dev_ids)}
    texts = [result.templates[z] for z in result.cover]
    weights = [
        max(sum(result.score_ZN[z]) / len(result.score_ZN[z]), WEIGHT_FLOOR) for z in result.cover
    ]
    templates = {}
    for name in hard_ids:
        members = candidates(result, columns, name)
        draw = functools.partial(
            random.Random(f"{seed}/assign/{name}").choices,
            [texts[i] for i in members],
            [weights[i] for i in members],
        )
        templates[name] = draw_group(group_size, cfg, lambda n, draw=draw: draw(k=n))
    return Assignment(templates)


def draw_group(
    group_size: int, cfg: config.AssignConfig, draw: Callable[[int], Sequence[str]]
) -> tuple[str, ...]:
    """The templates of a question's group: the drawn ones, then "" for each plain rollout.

    Args:
        draw: returns that many templates; called once, for one template where the whole group
            shares it.
    """
    num_plain = min(cfg.plain_rollouts or 0, group_size)
    num_templated = group_size - num_plain
    shared = cfg.same_template_in_group
    drawn = list(draw(1)) * num_templated if shared else draw(num_templated)
    return (*drawn, *[""] * num_plain)


def candidates(result: SearchResult, columns: Mapping[str, int], question_id: str) -> list[int]:
    """The members of the cover, as places in it, that a question may get.

    A dev question gets those that solve it, or all if none does; any other question all.

    Args:
        columns: the dev questions' columns in the scores.
    """
    everyone = list(range(len(result.cover)))
    if question_id not in columns:
        return everyone
    column = columns[question_id]
    return [i for i in everyone if result.solves(result.cover[i], column)] or everyone


def of_hints(hard: Sequence[Question], group_size: int, cfg: config.AssignConfig) -> Assignment:
    """Each hard question's own hint, for all of its group but the last `plain_rollouts`; a question
    without a hint is asked plainly (SAGE, arXiv 2602.03143).
    """
    return Assignment(
        {
            question.id: draw_group(group_size, cfg, lambda n, hint=question.hint: [hint] * n)
            for question in hard
            if question.hint
        }
    )


def next_assignment(
    result: SearchResult | None, state: RunState, cfg: config.Config, hard: Sequence[Question]
) -> Assignment:
    """The assignment that the prompt phase of a state leaves for the epochs to come.

    Without a result (the phase was skipped) all questions are asked plainly; with
    `gepa.schedule=first` all stays as it is. Hints are assigned when templates would evolve.

    Args:
        result: what the phase found; None: it was skipped.
        state: the state before the phase.
        cfg: the whole config.
        hard: the state's hard questions.
    """
    first = cfg.gepa.schedule == "first"
    if config.has_hints(cfg) and (state.step == 0) == first:
        return of_hints(hard, cfg.rollout.group_size, cfg.assign)
    if result is None:
        return state.assignment if first else Assignment()
    return assign(
        result, state.hard_ids, cfg.rollout.group_size, cfg.assign, f"{cfg.train.seed}/{state.step}"
    )


def best_template(result: SearchResult | None, before: str) -> str:
    """The template with the best mean dev score, or the one before where there is no result.

    The first one wins ties, so that where nothing helps it is the empty one.
    """
    if result is None:
        return before
    return max(zip(result.templates, result.score_ZN, strict=True), key=lambda pair: sum(pair[1]))[
        0
    ]


def prompts_for(
    questions: Sequence[Question],
    assignment: Assignment,
    group_size: int,
    name: str,
    tokens: Mapping[str, float] = MappingProxyType({}),
) -> list[TemplatedQuestion]:
    """The asks of a batch, all of a question's group before the next question's; unassigned
    questions are asked plainly.

    An ask is named by (name, question, place in the group), whatever else is in the batch. A
    question that is there again has a further group, which is plain. `tokens`: expected lengths of
    responses, by question.
    """
    plain = ("",) * group_size
    prompts: list[TemplatedQuestion] = []
    groups: dict[str, int] = {}
    for question in questions:
        first = groups.get(question.id, 0) * group_size
        templates = plain if first else assignment.templates.get(question.id, plain)
        groups[question.id] = groups.get(question.id, 0) + 1
        assert len(templates) == group_size, (
            f"question {question.id}: {len(templates)} templates, group size {group_size}"
        )
        expected = tokens.get(question.id, 0.0)
        prompts += [
            TemplatedQuestion(question, template, f"{name}/{question.id}/{g}", expected)
            for g, template in enumerate(templates, start=first)
        ]
    return prompts
