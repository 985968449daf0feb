"""Training batches: which tokens of a rollout are trained on which prompt, and how sequences are
packed into rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from p2o_jax.config import DistillConfig
from p2o_jax.types import Rollout

_NO_CHOICE = np.zeros(0, np.uint8)


def _empty() -> np.ndarray:
    return np.zeros(0, np.float32)


@dataclass(frozen=True)
class Example:
    """One response to train on."""

    trained_on_ids: tuple[int, ...]  # prompt of the update: the plain one, unless distill.mode=off
    sampled_on_ids: tuple[int, ...]  # prompt that the response was sampled on
    response_ids: np.ndarray
    advantage: float
    # False: excluded from the loss and its denominator (distill.drop_failed_templated,
    # loss.overlong=mask)
    trained: bool
    logp_sampler_R: np.ndarray
    logp_old_R: np.ndarray = field(default_factory=_empty)  # denominator of the PPO ratio
    logp_ref_R: np.ndarray = field(default_factory=_empty)
    # Factor on the policy loss of each token: distillation x importance x `response_weight`.
    # The KL term and the entropy bonus are not weighted.
    weight_R: np.ndarray = field(default_factory=_empty)
    response_weight: float = 1.0  # distill.failed_weight for failed templated responses
    # the sampler's choices of experts, see `Completion`
    choice_RX: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    taught: bool = False  # right and templated: loss.self_distill_coef applies
    fresh: bool = False  # not scored: sampled from the very params that its update starts from

    @property
    def templated(self) -> bool:
        """Whether the response was sampled on another prompt than it is trained on."""
        return self.sampled_on_ids != self.trained_on_ids


class PackedBatch(NamedTuple):
    """Micro-batches of rows on host or device, each field [U, B, T]. Segment 0 is padding; only
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
    fresh: Any  # sampled from the params of this update, whose log-probs are thus the old ones
    taught: Any  # tokens of right templated responses
    choice: Any  # experts to use for a token, [U, B, T, X]; 0: the router chooses


class Packed(NamedTuple):
    """Rows, the number of micro-batches in use, and the place of each response: (flat row, start,
    stop).
    """

    rows: PackedBatch
    num_micro: int
    places: list[tuple[int, int, int]]

    @property
    def flat(self) -> PackedBatch:
        """The same rows without micro-batches, [U * B, T, ...], to write to."""
        U, B = self.rows.token.shape[:2]
        return PackedBatch(*(x.reshape(U * B, *x.shape[2:]) for x in self.rows))

    def replay(self, choices: Sequence[np.ndarray]) -> None:
        """Sets the experts that compute the predecessor of each response token.

        Args:
            choices: [R, X] of each sequence; empty: the router chooses.
        """
        flat = self.flat
        for (r, a, b), choice_RX in zip(self.places, choices, strict=True):
            if choice_RX.size:
                flat.choice[r, a - 1 : b - 1] = choice_RX


def examples(
    rollouts: Sequence[Rollout],
    advantage_QG: np.ndarray,
    cfg: DistillConfig,
    overlong: str = "none",
) -> list[Example]:
    """Returns an example for each rollout, in order. Templated rollouts are trained on the plain
    prompt (algorithm step 6).
    """
    result = []
    for rollout, advantage in zip(rollouts, advantage_QG.reshape(-1), strict=True):
        failed = rollout.templated and not rollout.succeeded
        result.append(
            Example(
                trained_on_ids=rollout.prompt_ids if cfg.mode == "off" else rollout.plain_ids,
                sampled_on_ids=rollout.prompt_ids,
                response_ids=rollout.completion.token_ids,
                advantage=float(advantage),
                trained=not (
                    (cfg.drop_failed_templated and failed)
                    or (overlong == "mask" and not rollout.completion.stopped)
                ),
                logp_sampler_R=rollout.completion.logp_R,
                response_weight=cfg.failed_weight if failed else 1.0,
                choice_RX=rollout.completion.choice_RX,
                taught=rollout.templated and rollout.succeeded,
            )
        )
    return result


def minibatches(scored: Sequence[Example], size: int) -> list[Sequence[Example]]:
    """Splits the examples into mini-batches of `size`, in order; the last may be shorter."""
    return [scored[i : i + size] for i in range(0, len(scored), size)]


def pack(
    sequences: Sequence[tuple[tuple[int, ...], np.ndarray]],
    row_tokens: int,
    micro_rows: int,
    max_micro: int,
    pad_id: int,
    choice: Any = _NO_CHOICE,
) -> Packed:
    """Packs sequences into rows, first fit by decreasing length. Sequences are never split, and
    attention stays within a sequence.

    Args:
        sequences: (prompt, response) token ids.
        row_tokens: length T of a row.
        micro_rows: rows B of a micro-batch.
        max_micro: micro-batches U to allocate.
        pad_id: token id of padding.
        choice: shape and dtype of a token's experts, see `experts.choices_of_token`.

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
    bools = {name: np.zeros(shape, bool) for name in ("trained", "fresh", "taught")}
    token = np.full(shape, pad_id, np.int32)
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
    choices = np.zeros((*shape, *choice.shape), choice.dtype)
    rows = PackedBatch(token=token, choice=choices, **ints, **floats, **bools)
    rows = PackedBatch(*(x.reshape(max_micro, micro_rows, *x.shape[1:]) for x in rows))
    return Packed(rows, -(-len(contents) // micro_rows), places)


def first_fit(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Returns the sequence indices of each row: longest sequences first, each in the first row with
    space left.
    """
    rows: list[list[int]] = []
    space: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        r = next((r for r, left in enumerate(space) if left >= lengths[n]), len(rows))
        if r == len(rows):
            rows.append([])
            space.append(row_tokens)
        rows[r].append(n)
        space[r] -= lengths[n]
    return rows
