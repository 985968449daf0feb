"""Estimated floating-point operations: 2 per weight and token of a forward pass, plus attention.

A token at position i (from 0) costs 2 N + 4 L H C (i + 1): N weights including embedding and head,
of experts only the chosen ones; scores and weighted sum over i + 1 keys of C channels, for H heads
in L layers, at 2 operations per multiplication. Layers with a sliding window count its keys at
most, a Gated DeltaNet 6 operations per entry of its states instead. A backward pass costs twice a
forward pass, so an update costs 6 N. Recomputed layers, padding, the optimizer and sampling itself
are not counted. Results are integers, so sums are exact.
"""

from collections.abc import Iterable, Sequence

from p2o_jax.models.spec import DeltaNet, ModelSpec, num_active_params

# (prompt ids, number of tokens after it)
PromptAndLength = tuple[tuple[int, ...], int]


def forward(spec: ModelSpec, start: int, end: int) -> int:
    """Returns the cost of a forward pass over positions start ... end - 1; earlier positions are
    cached.
    """
    tokens = end - start
    states = sum(_of_state(layer.delta) for layer in spec.layer_types if layer.delta)
    keys = sum(_attended(layer.window, start, end) for layer in spec.layer_types if not layer.delta)
    attention = 4 * spec.heads * spec.head_dim * keys
    return (2 * num_active_params(spec.base) + states) * tokens + attention


def _of_state(delta: DeltaNet) -> int:
    """Returns the cost of a token in the states of a Gated DeltaNet: three products of a state and
    a vector, the last of which writes.
    """
    return 3 * 2 * delta.state_size


def _attended(window: int, start: int, end: int) -> int:
    """Returns the keys that the queries at positions start ... end - 1 attend to in a layer."""
    beyond = max(end - max(start, window), 0) if window else 0  # queries with whole windows
    end -= beyond
    return (end * (end + 1) - start * (start + 1)) // 2 * (end > start) + beyond * window


def sampling(spec: ModelSpec, sequences: Sequence[PromptAndLength]) -> int:
    """Returns the cost of sampling these sequences in one call: every distinct prompt once, and
    each response.
    """
    prompts = {prompt for prompt, _ in sequences}
    prefill = sum(forward(spec, 0, len(prompt)) for prompt in prompts)
    return prefill + sum(
        forward(spec, len(prompt), len(prompt) + length) for prompt, length in sequences
    )


def scoring(spec: ModelSpec, lengths: Iterable[int]) -> int:
    """Returns the cost of log-probs of whole sequences of these lengths."""
    return sum(forward(spec, 0, length) for length in lengths)


def update(spec: ModelSpec, lengths: Iterable[int]) -> int:
    """Returns the cost of forward and backward passes. With adapters, frozen weights need no
    gradient, which saves a third.
    """
    return (2 if spec.lora else 3) * scoring(spec, lengths)
