"""The templates that a phase begins with beside the empty one, and those that outlive it."""

from collections.abc import Callable, Iterable, Sequence

from p2o_jax import config
from p2o_jax.gepa import filters
from p2o_jax.types import Question, SearchResult


def carried(
    result: SearchResult | None, before: tuple[str, ...], cfg: config.GepaConfig
) -> tuple[str, ...]:
    """Returns the templates that the next phase takes over, at most `carry_over`: the cover, then
    the best others by mean dev score, earlier ones first in a tie. Those before where the phase
    was skipped.
    """
    if result is None:
        return before
    others = sorted(range(len(result.templates)), key=lambda z: -sum(result.score_ZN[z]))
    order = dict.fromkeys((*result.cover, *others))
    return tuple(result.templates[z] for z in order if z)[: cfg.carry_over]


def fitting(
    templates: Iterable[str],
    questions: Sequence[Question],
    fits: Callable[[str, Question], bool],
    most: int,
) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns the first `most` distinct templates under which all questions fit the prompt limit,
    and those left out, each with its outcome (a key of `search.REJECTIONS`).

    Args:
        templates: without the empty one; white space is ignored in comparisons.
        questions: of the phase.
        fits: whether a question fits under a template.
        most: how many the budget pays for.
    """
    kept: list[str] = []
    dropped: list[tuple[str, str]] = []
    known = {""}
    for text in templates:
        if (normal := filters.normal(text)) in known:
            continue
        known.add(normal)
        if not all(fits(text, question) for question in questions):
            dropped.append((text, "overlong_prompt"))
        elif len(kept) >= most:
            dropped.append((text, "budget"))
        else:
            kept.append(text)
    return kept, dropped
