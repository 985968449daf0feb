"""What n samples of each of Q questions say: avg@n, unbiased pass@k, maj@n, and how far to trust them."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Shaped

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 1000  # resamples drawn at a time


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that k of n samples, drawn without replacement, hold one of the c right ones.

    Unbiased for the chance that k fresh samples hold a right one (arXiv 2107.03374, equation 1).
    """
    assert 0 < k <= num_samples and 0 <= num_correct <= num_samples, (num_samples, num_correct, k)
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def ks(num_samples: int) -> list[int]:
    """The k of which pass@k is told: powers of two up to n, and n."""
    return sorted({1 << i for i in range(num_samples.bit_length())} | {num_samples})


def majority(answers: Sequence[Hashable | None], correct: Sequence[float]) -> float:
    """Whether the answer that most samples give is right; tied answers share the credit, no answer (None) is none's. 0 without answers."""
    counts = Counter(a for a in answers if a is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    credit = {a: np.mean([c for b, c in zip(answers, correct, strict=True) if b == a]) for a, n in counts.items() if n == most}
    return float(np.mean(list(credit.values())))


def interval(*sets: Float[np.ndarray, "Q"], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean over questions, which are drawn with replacement.

    Of several sets: of the mean of their means, the questions of each drawn among its own.
    """
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            np.mean([value_Q[rng.integers(len(value_Q), size=(_CHUNK, len(value_Q)))].mean(axis=1) for value_Q in sets], axis=0)
            for _ in range(RESAMPLES // _CHUNK)
        ]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def standard_error(value_Q: Shaped[np.ndarray, "Q"]) -> float:
    """Of the mean over questions; 0 for a single one."""
    return float(value_Q.std(ddof=1) / math.sqrt(len(value_Q))) if len(value_Q) > 1 else 0.0
