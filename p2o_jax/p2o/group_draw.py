"""The draw of a group's templates, and which templates a question may get."""

from collections.abc import Callable, Mapping, Sequence

from p2o_jax import config
from p2o_jax.types import SearchResult


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
