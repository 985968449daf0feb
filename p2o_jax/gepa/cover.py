"""The greedy set cover that ends a phase (algorithm step 4).

A dev question counts as solved if its score is above `config.reward.success_above`. With one
rollout per evaluation and rewards of 0 or 1 this means a score of 1; the mean of several rollouts
(`gepa.rollouts_per_eval`) counts when most of them succeed. ▲ The released code requires exactly 1,
which a mean hardly ever reaches.
"""

from collections.abc import Sequence


def covered(score_ZN: Sequence[Sequence[float]], success_above: float) -> set[int]:
    """Returns the dev questions that at least one candidate solves."""
    return set().union(*_solves(score_ZN, success_above))


def greedy_cover(score_ZN: Sequence[Sequence[float]], success_above: float) -> tuple[int, ...]:
    """Returns candidates that cover all coverable dev questions, in the order taken: most new
    questions first, ties to the earliest.

    ▲ Empty if nothing is solved; the released code raises.
    """
    solves = _solves(score_ZN, success_above)
    left = set().union(*solves)
    taken: list[int] = []
    while left:
        best = max(range(len(solves)), key=lambda z: len(solves[z] & left))
        taken.append(best)
        left -= solves[best]
    return tuple(taken)


def _solves(score_ZN: Sequence[Sequence[float]], success_above: float) -> list[set[int]]:
    return [{n for n, score in enumerate(row) if score > success_above} for row in score_ZN]
