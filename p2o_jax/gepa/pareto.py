"""Which candidates may be parents: those that are best on some dev question (algorithm step 3a)."""

from collections.abc import Sequence


def fronts(score_ZN: Sequence[Sequence[float]]) -> tuple[tuple[int, ...], ...]:
    """Returns, for every dev question, the candidates with the best score on it, in order.

    These are the sets that result from adding candidates one by one, where a strictly better one
    replaces the set and an equal one joins it.
    """
    best = [max(column) for column in zip(*score_ZN, strict=True)]
    return tuple(
        tuple(z for z, row in enumerate(score_ZN) if row[n] == top) for n, top in enumerate(best)
    )


def weights(score_ZN: Sequence[Sequence[float]], count_unsolved: bool) -> dict[int, int]:
    """Returns how often each candidate is drawn as a parent: the number of fronts that it is in,
    without candidates in none.

    ▲ Without `count_unsolved`, questions on which every candidate scores 0 do not count: all
    candidates tie there, which makes the choice almost uniform. If no other question is left, they
    do count.
    """
    counts: dict[int, int] = {}
    for front, column in zip(fronts(score_ZN), zip(*score_ZN, strict=True), strict=True):
        if count_unsolved or max(column) > 0:
            for z in front:
                counts[z] = counts.get(z, 0) + 1
    if not counts and not count_unsolved:
        return weights(score_ZN, count_unsolved=True)
    return dict(sorted(counts.items()))
