"""From rollouts to rows: which tokens are trained on, on which prompt, and how sequences are
packed into rows of fixed length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from p2o_jax.config import DistillConfig
from p2o_jax.types import Rollout


def _empty() -> np.ndarray:
    return np.zeros(0, np.float32)


@dataclass(frozen=True)
class Example:
    """One response to train on. `prompt_ids` is the prompt that the update is made on: the plain
    one, unless distill.mode=off.
    """

    prompt_ids: tuple[int, ...]
    sampled_on_ids: tuple[int, ...]  # the prompt that the response was sampled on: T(x, z)
    response_ids: np.ndarray
    advantage: float
    # False: leaves the loss and its denominator (distill.drop_failed_templated, loss.overlong=mask)
    trained: bool
    logp_sampler_R: np.ndarray
    logp_old_R: np.ndarray = field(default_factory=_empty)  # what the PPO ratio is taken against
    logp_ref_R: np.ndarray = field(default_factory=_empty)
    weight_R: np.ndarray = field(default_factory=_empty)
    weight: float = 1.0  # of all tokens, beside weight_R's own reasons (distill.failed_weight)
    fresh: bool = False  # not scored: the update that it is in is the first since it was sampled

    @property
    def templated(self) -> bool:
        return self.sampled_on_ids != self.prompt_ids


class PackedBatch(NamedTuple):
    """Micro-batches of rows, each field [M, B, T], on host or device; segment 0 is padding. Only
    `trained` tokens enter the loss.
    """

    token: Any
    position: Any
    segment: Any
    trained: Any
    advantage: Any
    scale: Any
    weight: Any
    logp_old: Any
    logp_ref: Any
    logp_sampler: Any
    fresh: (
        Any  # the update is the first since these were sampled: its own log-probs are the old ones
    )


class Packed(NamedTuple):
    """Rows, how many micro-batches of them are in use, and where each sequence's response lies:
    (flat row, first, last + 1).
    """

    rows: PackedBatch
    num_micro: int
    places: list[tuple[int, int, int]]


def examples(
    rollouts: Sequence[Rollout],
    advantage_QG: np.ndarray,
    cfg: DistillConfig,
    overlong: str = "none",
) -> list[Example]:
    """An example for each rollout, in group order (algorithm step 6: templated rollouts are
    trained on the plain prompt).
    """
    made = []
    for rollout, advantage in zip(rollouts, advantage_QG.reshape(-1), strict=True):
        failed = rollout.templated and not rollout.succeeded
        made.append(
            Example(
                prompt_ids=rollout.prompt_ids if cfg.mode == "off" else rollout.plain_ids,
                sampled_on_ids=rollout.prompt_ids,
                response_ids=rollout.completion.token_ids,
                advantage=float(advantage),
                trained=not (
                    (cfg.drop_failed_templated and failed)
                    or (overlong == "mask" and not rollout.completion.stopped)
                ),
                logp_sampler_R=rollout.completion.logp_R,
                weight=cfg.failed_weight if failed else 1.0,
            )
        )
    return made


def minibatches(made: Sequence[Example], size: int) -> list[Sequence[Example]]:
    """The examples in runs of `size` (the last may be shorter), in order."""
    return [made[i : i + size] for i in range(0, len(made), size)]


def pack(
    sequences: Sequence[tuple[tuple[int, ...], np.ndarray]],
    row_tokens: int,
    micro_rows: int,
    max_micro: int,
    pad_id: int,
) -> Packed:
    """Prompts and responses laid into rows, first fit by decreasing length; rows are never split
    and segments never attend across.

    Raises:
        ValueError: a sequence is longer than a row.
    """
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    if lengths and max(lengths) > row_tokens:
        raise ValueError(
            f"a sequence of {max(lengths)} tokens does not fit config.optim.row_tokens={row_tokens}"
        )
    contents = first_fit(lengths, row_tokens)
    shape = (max_micro * micro_rows, row_tokens)
    ints = {name: np.zeros(shape, np.int32) for name in ("position", "segment")}
    floats = {
        name: np.zeros(shape, np.float32)
        for name in ("advantage", "scale", "weight", "logp_old", "logp_ref", "logp_sampler")
    }
    token, trained, fresh = (
        np.full(shape, pad_id, np.int32),
        np.zeros(shape, bool),
        np.zeros(shape, bool),
    )
    places = [(0, 0, 0)] * len(sequences)
    for r, members in enumerate(contents):
        at = 0
        for segment, n in enumerate(members, start=1):
            prompt, response = sequences[n]
            end = at + lengths[n]
            token[r, at : at + len(prompt)], token[r, at + len(prompt) : end] = prompt, response
            ints["position"][r, at:end], ints["segment"][r, at:end] = np.arange(lengths[n]), segment
            places[n] = (r, at + len(prompt), end)
            at = end
    rows = PackedBatch(token=token, trained=trained, fresh=fresh, **ints, **floats)
    rows = PackedBatch(*(x.reshape(max_micro, micro_rows, row_tokens) for x in rows))
    return Packed(rows, -(-len(contents) // micro_rows), places)


def first_fit(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """For each row, the indices of the sequences in it; longest first, each into the first row
    with room.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        r = next((r for r, left in enumerate(room) if left >= lengths[n]), len(rows))
        if r == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[r].append(n)
        room[r] -= lengths[n]
    return rows
