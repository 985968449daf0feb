"""Lower bounds on time, from sizes: what a device reads and computes at least.

A decode step reads all weights once, and of each active sequence the keys and values of every
position so far. This leaves out activations, logits and everything that is written.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from p2o_jax.models import flops
from p2o_jax.models.device_memory import kv_bytes_per_token
from p2o_jax.models.spec import ModelSpec, num_params
from p2o_jax.plan.chips import CHIPS

Lengths = Sequence[tuple[int, int]]  # tokens of prompt and response of each sequence

# Sequences of the public benchmark of nano-vllm (bench.py): its numbers, in its order of draws.
PUBLIC_SEED, PUBLIC_SEQUENCES, PUBLIC_LENGTHS, PUBLIC_IDS = 0, 256, (100, 1024), 10000
# What a device's name contains, and must not contain, for each kind of `plan.chips`. Cards with
# less memory or for another slot have other peaks.
_NAMES = {
    "v4": (("TPU v4",), ("lite",)),
    "v5e": (("TPU v5 lite", "TPU v5e"), ()),
    "v5p": (("TPU v5",), ("lite", "v5e")),
    "v6e": (("TPU v6 lite", "TPU v6e"), ()),
    "tpu7x": (("TPU7x", "TPU v7"), ()),
    "a100": (("A100-SXM4-80GB",), ()),
    "h100": (("H100 80GB HBM3",), ()),
    "h200": (("NVIDIA H200",), ("NVL",)),
}


class Rates(NamedTuple):
    """Speeds of a device; 0: unknown."""

    bytes_per_s: float = 0.0  # of its memory
    flops: float = 0.0  # per second, in bfloat16


def data_sheet(device_kind: str) -> Rates:
    """Returns the peak rates of a device by JAX's name for its kind; zeros if it is not known."""
    for kind, (names, others) in _NAMES.items():
        if any(n in device_kind for n in names) and not any(n in device_kind for n in others):
            return Rates(CHIPS[kind].hbm_bytes, CHIPS[kind].flops)
    return Rates()


def rounded(figure: float) -> float:
    """Returns the figure with four digits."""
    return float(f"{figure:.4g}")


def share(figure: float, of: float) -> float | None:
    """Returns the ratio; None if the reference is unknown (0)."""
    return rounded(figure / of) if of else None


def read_weights(spec: ModelSpec) -> int:
    """Returns the weights that a decode step reads: all, but of an embedding that is not also the
    output head only the rows of its tokens, which are not counted.
    """
    return num_params(spec) - (0 if spec.tied else spec.vocab_rows * spec.width)


def decode_bytes(spec: ModelSpec, lengths: Lengths, steps: int, dtype: str = "bfloat16") -> int:
    """Returns the bytes that decoding reads at least.

    A prompt's last token is fed in the first step, so the step for response token a (from 0) reads
    prompt + a positions.

    Args:
        spec: the model.
        lengths: tokens of each prompt and response.
        steps: decode steps, each of which reads the weights.
        dtype: of weights, keys and values.
    """
    item = 4 if dtype == "float32" else 2
    positions = sum(p * r + r * (r - 1) // 2 for p, r in lengths)
    return steps * read_weights(spec) * item + positions * kv_bytes_per_token(spec, dtype)


def decode_steps(lengths: Lengths, slots: int) -> int:
    """Returns the fewest steps in which this many slots decode all responses."""
    responses = [r for _, r in lengths]
    return max(max(responses), -(-sum(responses) // slots))


def prefill_flops(spec: ModelSpec, lengths: Lengths) -> int:
    """Returns the operations of prefill: all tokens of each prompt but the last, without the output
    head.
    """
    tokens = sum(prompt - 1 for prompt, _ in lengths)
    head = 2 * spec.vocab_rows * spec.width * tokens
    return sum(flops.forward(spec, 0, prompt - 1) for prompt, _ in lengths) - head


def public_requests(
    count: int = PUBLIC_SEQUENCES, lengths: tuple[int, int] = PUBLIC_LENGTHS, ids: int = PUBLIC_IDS
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Returns the prompts of the public benchmark and the length of each response, which ends
    there and nowhere else.

    Args:
        count: sequences.
        lengths: shortest and longest prompt and response, in tokens; all are equally likely.
        ids: largest token id of a prompt.
    """
    rng = random.Random(PUBLIC_SEED)
    prompts = [
        tuple(rng.randint(0, ids) for _ in range(rng.randint(*lengths))) for _ in range(count)
    ]
    return prompts, [rng.randint(*lengths) for _ in range(count)]
