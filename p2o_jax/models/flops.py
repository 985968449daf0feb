"""Estimated floating-point operations: 2 per weight and token forward, and the attention to what
comes before.

A token at position i (from 0) costs 2 N + 4 L H C (i + 1): N weights, embedding and head included;
scores and their weighted sum over i + 1 keys of C channels, for H heads in L layers, 2 operations a
multiplication. A backward pass costs twice the forward one, so an update 6 N; recomputed layers,
padding, the optimizer and sampling itself are not counted. Integers, so that sums are exact.
"""

from collections.abc import Iterable, Sequence

from p2o_jax.models.spec import ModelSpec, num_params

# a prompt's ids, and the number of tokens that follow it
PromptAndLength = tuple[tuple[int, ...], int]


def forward(spec: ModelSpec, start: int, end: int) -> int:
    """A forward pass over the tokens at positions start ... end - 1 of a sequence, those before
    being in the cache.
    """
    keys = (end * (end + 1) - start * (start + 1)) // 2
    return (
        2 * num_params(spec.base) * (end - start)
        + 4 * spec.layers * spec.heads * spec.head_dim * keys
    )


def sampling(spec: ModelSpec, sequences: Sequence[PromptAndLength]) -> int:
    """Sampling these in one call: every distinct prompt once, and each response."""
    prompts = {prompt for prompt, _ in sequences}
    prefill = sum(forward(spec, 0, len(prompt)) for prompt in prompts)
    return prefill + sum(
        forward(spec, len(prompt), len(prompt) + length) for prompt, length in sequences
    )


def scoring(spec: ModelSpec, lengths: Iterable[int]) -> int:
    """Log-probs of whole sequences of these lengths."""
    return sum(forward(spec, 0, length) for length in lengths)


def update(spec: ModelSpec, lengths: Iterable[int]) -> int:
    """Forward and backward over whole sequences; with adapters the frozen weights have no
    gradient of their own, which saves a third.
    """
    return (2 if spec.lora else 3) * scoring(spec, lengths)
