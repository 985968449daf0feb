"""The greedy set cover that ends a phase (algorithm step 4)."""

from collections.abc import Sequence


def solved(score: float) -> bool:
    """Whether a dev score counts as solved: more than one half.

    With one rollout per evaluation this is "scores 1", as scores are 0 or 1; the mean of several rollouts
    (`gepa.rollouts_per_eval`) counts when most of them succeed. ▲ The released code asks for exactly 1, which no mean reaches by luck.
    """
    return score > 0.5


def covered(score_ZN: Sequence[Sequence[float]]) -> set[int]:
    """The dev questions that at least one candidate solves."""
    return {n for row in score_ZN for n, score in enumerate(row) if solved(score)}


def greedy_cover(score_ZN: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """The candidates that cover all coverable dev questions, in the order taken: most new questions first, the first one wins ties.

    ▲ Empty when nothing is solved, where the released code raises.
    """
    solves = [{n for n, score in enumerate(row) if solved(score)} for row in score_ZN]
    left = covered(score_ZN)
    taken: list[int] = []
    while left:
        best = max(range(len(solves)), key=lambda z: len(solves[z] & left))
        taken.append(best)
        left -= solves[best]
    return tuple(taken)
