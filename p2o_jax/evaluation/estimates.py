"""What n samples of each of Q questions say: avg@n, unbiased pass@k, maj@n, and how far to trust
them.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Shaped

LEVEL = 0.95
Z95 = 1.959964  # standard normal quantile of .975


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that k of n samples, drawn without replacement, hold
    one of the c right ones.

    Unbiased for the chance that k fresh samples hold a right one (arXiv 2107.03374, equation 1).
    """
    assert 0 < k <= num_samples and 0 <= num_correct <= num_samples, (num_samples, num_correct, k)
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def ks(num_samples: int) -> list[int]:
    """The k for which pass@k is reported: powers of two up to n, and n."""
    return sorted({1 << i for i in range(num_samples.bit_length())} | {num_samples})


def majority(answers: Sequence[Hashable | None], correct: Sequence[float]) -> float:
    """Whether the answer that most samples give is right; tied answers share the credit, no
    answer (None) is none's. 0 without answers.
    """
    counts = Counter(a for a in answers if a is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    credit = {
        a: np.mean([c for b, c in zip(answers, correct, strict=True) if b == a])
        for a, n in counts.items()
        if n == most
    }
    return float(np.mean(list(credit.values())))


def interval_of_mean(mean: float, error: float | None, count: int) -> tuple[float, float]:
    """The 95 % interval of a mean over `count` questions whose scores lie in [0, 1], from the mean
    and its standard error.

    Wilson's where each score is 0 or 1, or where the error is not known. Scores that are all 0 or 1
    have the error sqrt(p (1 - p) / (n - 1)), and any others of the same mean have a smaller one:
    where scores are graded, or are themselves means of several rollouts, the interval is Student's,
    cut to [0, 1].
    """
    if count == 1 and mean not in (0.0, 1.0):  # a graded score, of which nothing else is known
        return 0.0, 1.0
    if error is None or count == 0 or mean in (0.0, 1.0):
        return wilson(mean, count)
    if math.isclose(error, math.sqrt(mean * (1 - mean) / (count - 1)), rel_tol=1e-6):
        return wilson(mean, count)
    from scipy.special import stdtrit  # a tenth of the imports of a command

    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error
    return max(mean - half, 0.0), min(mean + half, 1.0)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share among `count` independent questions; never empty, at
    shares of 0 and 1 neither.
    """
    if count == 0:
        return 0.0, 1.0
    middle = share + Z95**2 / (2 * count)
    half = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def standard_error(value_Q: Shaped[np.ndarray, "Q"]) -> float | None:
    """Of the mean over questions; None for a single one, whose error is not known."""
    return float(value_Q.std(ddof=1) / math.sqrt(len(value_Q))) if len(value_Q) > 1 else None
