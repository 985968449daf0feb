"""All random draws of a phase, from generators named by (seed, step): the split, parents and
minibatches.
"""

import random
from collections.abc import Mapping, Sequence, Set

from p2o_jax.types import Question

_REDRAWS = 32  # attempts to draw a minibatch that the parent does not have yet


def split(
    questions: Sequence[Question], dev_size: float, seed: str
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Splits the shuffled questions into (reflection-train, dev) (algorithm step 1), independent of
    their order.

    Dev has `dev_size` questions if there are at least 1.5 times as many, else half of them. Below
    1, `dev_size` is a fraction. A single question is a dev question. ▲ Seeded: the released code
    uses the global generator.
    """
    pool = [q for _, q in sorted({q.id: q for q in questions}.items())]
    random.Random(f"{seed}/split").shuffle(pool)
    if dev_size < 1:
        num_dev = int(len(pool) * dev_size)
    elif len(pool) >= 1.5 * dev_size:
        num_dev = int(dev_size)
    else:
        num_dev = len(pool) // 2
    num_dev = max(num_dev, min(1, len(pool)))
    return tuple(pool[num_dev:]), tuple(pool[:num_dev])


def parents(rng: random.Random, weights: Mapping[int, int], width: int, fill: bool) -> list[int]:
    """Returns the parent of each proposal: all candidates if at most `width` exist, else `width`
    distinct ones drawn by weight.

    ▲ With `fill`, fewer candidates than `width` are followed by repetitions drawn by weight, up to
    `width`.
    """
    left = dict(sorted(weights.items()))
    if len(left) <= width:
        chosen = list(left)
        if fill:
            chosen += rng.choices(chosen, [left[z] for z in chosen], k=width - len(chosen))
        return chosen
    chosen = []
    for _ in range(width):
        (z,) = rng.choices(list(left), list(left.values()))
        chosen.append(z)
        del left[z]
    return sorted(chosen)


def minibatch(
    rng: random.Random, used: Set[int], num_train: int, size: int, taken: Set[tuple[int, ...]]
) -> tuple[int, ...]:
    """Returns the train questions of one proposal: unused ones while enough are left, then any; all
    if there are too few.

    ▲ A minibatch that the same parent already has in this iteration is replaced by another draw, if
    possible.

    Args:
        rng: generator of the iteration.
        used: train questions that were in a minibatch.
        num_train: number of train questions.
        size: questions of a minibatch.
        taken: minibatches of the same parent in this iteration.
    """
    left = [i for i in range(num_train) if i not in used]
    if len(left) < size:
        left = list(range(num_train))
    drawn = tuple(rng.sample(left, min(size, len(left))))
    for _ in range(_REDRAWS):
        if tuple(sorted(drawn)) not in taken:
            break
        drawn = tuple(rng.sample(left, min(size, len(left))))
    return drawn


def further(
    rng: random.Random, used: Set[int], num_train: int, size: int, have: Set[int]
) -> tuple[int, ...]:
    """Returns `size` train questions outside `have`, those outside `used` first."""
    left = [i for i in range(num_train) if i not in have]
    rng.shuffle(left)
    return tuple(sorted(left, key=lambda i: i in used)[:size])
