"""What is lost at the end of a sampling phase, simulated: `python -m benchmarks.idle_tail`.

A step ends with its longest response, while other slots are idle. Three ways are compared, with the
package's own division of work over shards:

- `unknown`: nothing is known of lengths, as in the first epoch.
- `history`: the mean length of each question's responses is known, from earlier epochs; long ones
  start first. This is what training does.
- `carry_over`: slots never wait. New questions are started as slots become free, a step trains on
  the first groups that are complete, and responses that are not continue in the next step under its
  weights. `stale` is the share of trained tokens that were sampled under earlier weights than those
  that the update starts from.

Lengths are lognormal, half of the variance between questions, and at most 12,288 tokens. Slots are
those of the plans for Qwen3-4B on v6e:4x4 (docs/scale.md), 128 groups of 6 a step. Figures are
decode iterations per step, slots in use, and seconds by memory traffic: each iteration reads the
weights, and each token its prompt and the tokens before it, which no order of responses changes.
`of a step` adds the plan's seconds of scoring and updates, and leaves prompt phases out.
"""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.report import Target
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command
from p2o_jax.rollout import scheduler
from p2o_jax.types import Request

QUESTIONS, GROUP, LONGEST, PROMPT = 128, 6, 12_288, 512
COMMAND_LINE = CommandLine(
    "benchmarks.idle_tail",
    __doc__,
    Flag("means", "Mean lengths", [800, 3000, 6000], kind=int, within=COUNT, several=True),
    Flag("spread", "Standard deviation of the logarithm of lengths", 0.9, kind=float),
    Flag("steps", "Training steps", 40, kind=int, within=COUNT),
    settings=False,
)


class Layout(NamedTuple):
    """A mesh of the plans: shards, slots of each, and seconds to read a chip's weights and one
    cached token.
    """

    shards: int
    slots: int
    weights_s: float
    token_s: float


BANDWIDTH = 1.64e12  # bytes per second, v6e
LAYOUTS = {
    "fsdp=16": Layout(16, 7, 7.5 * 2**30 / BANDWIDTH, 147_456 / BANDWIDTH),
    "tensor=4, int8": Layout(4, 96, 1.9 * 2**30 / BANDWIDTH, 76_032 / 4 / BANDWIDTH),
}
LEARNING_S = 24.4 / (6144 + PROMPT)  # scoring and updates, per mean token of a sequence


class Lengths:
    """Draws the lengths of groups. Their mean is that asked for, after the limit."""

    def __init__(self, mean: float, spread: float, seed: int = 0):
        self.rng, self.spread = np.random.default_rng(seed), spread
        z = np.random.default_rng(1).normal(0, spread, 20_000)
        low, high = 0.0, 20.0
        for _ in range(60):  # the mean of capped lengths grows with mu
            self.mu = (low + high) / 2
            capped = np.minimum(np.exp(self.mu + z), LONGEST).mean()
            low, high = (self.mu, high) if capped < mean else (low, self.mu)

    def group(self) -> tuple[float, np.ndarray]:
        """Returns the question's own mean length, and the lengths of its responses."""
        part = self.spread / 2**0.5
        center = self.mu + self.rng.normal(0, part)
        drawn = np.exp(center + self.rng.normal(0, part, GROUP))
        lengths = np.clip(np.round(drawn), 1, LONGEST).astype(int)
        return float(min(np.exp(center + part**2 / 2), LONGEST)), lengths


class Outcome(NamedTuple):
    """Figures of one way: decode iterations per step, slots in use, cached tokens that a shard
    reads per step, and stale tokens.
    """

    iterations: float
    busy: float
    reads: float
    stale: float = 0.0

    def seconds(self, layout: Layout) -> float:
        """Returns the seconds of decoding per step."""
        return self.iterations * layout.weights_s + self.reads * layout.token_s


def run(argv: Sequence[str]) -> None:
    """Simulates and reports.

    Raises:
        ConfigError: the flags are invalid.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    figures: dict[str, Any] = {}
    targets: dict[str, Target] = {}
    head = ("mesh", "mean length", "way", "iterations", "slots in use", "decoding, s", "of a step")
    print(f"| {' | '.join((*head, 'stale tokens'))} |", "| --- " * 8 + "|", sep="\n")
    means: list[int] = flags["means"]
    for mesh, mean in itertools.product(LAYOUTS, means):
        layout, steps = LAYOUTS[mesh], flags["steps"]
        drawn = [Lengths(mean, flags["spread"]) for _ in range(3)]
        ways = {
            "unknown": by_step(drawn[0], layout.shards, layout.slots, steps, known=False),
            "history": by_step(drawn[1], layout.shards, layout.slots, steps, known=True),
            "carry_over": carried_over(drawn[2], layout.shards, layout.slots, steps),
        }
        learning = LEARNING_S * (mean + PROMPT)
        usual = ways["history"].seconds(layout) + learning
        for way, of in ways.items():
            seconds = of.seconds(layout)
            share = (seconds + learning) / usual
            print(
                f"| {mesh} | {mean:,} | {way} | {of.iterations:,.0f} | {of.busy:.0%} |"
                f" {seconds:.0f} | {share:.2f} | {of.stale:.0%} |"
            )
            figures[f"{mesh}, {mean}, {way}"] = {
                **{name: round(x, 3) for name, x in of._asdict().items()},
                "decode_s": round(seconds, 1),
            }
        name = f"{mesh}, {mean}: of a step"
        figures[name] = round((ways["carry_over"].seconds(layout) + learning) / usual, 3)
        targets[name] = Target(name, "<=", 0.85)
    report.finish("idle_tail", figures, targets)


def by_step(lengths: Lengths, shards: int, slots: int, steps: int, known: bool) -> Outcome:
    """Returns what steps take that end when all of their responses have ended.

    Args:
        lengths: of responses.
        shards: shards of the mesh.
        slots: slots of each.
        steps: steps to simulate.
        known: whether the questions' mean lengths are known.
    """
    iterations = tokens = reads = 0
    for _ in range(steps):
        groups = [lengths.group() for _ in range(QUESTIONS)]
        requests = [
            Request((q,), f"{q}.{g}", mean if known else 0.0)
            for q, (mean, _) in enumerate(groups)
            for g in range(GROUP)
        ]
        of_request = [int(n) for _, group in groups for n in group]
        limit = -(-len(requests) * 5 // 4 // shards)
        waves = scheduler.plan(requests, {8: QUESTIONS}, shards, limit)
        for wave in waves:
            iterations += max(
                _last_end([of_request[i] for i, _ in shard.queue], slots) for shard in wave.shards
            )
        tokens += sum(of_request)
        reads += sum(map(_reads, of_request))
    busy = tokens / (iterations * shards * slots)
    return Outcome(iterations / steps, busy, reads / steps / shards)


def _reads(length: int) -> int:
    """Returns the cached tokens that a response reads: its prompt and what comes before a token."""
    return length * PROMPT + length * length // 2


def _last_end(queue: Sequence[int], slots: int) -> int:
    """Returns when the last response ends, if each free slot takes the next one of the queue."""
    ends = [0] * slots
    for length in queue:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def carried_over(lengths: Lengths, shards: int, slots: int, steps: int) -> Outcome:
    """Returns what steps take that train on the first groups that are complete.

    Args:
        lengths: of responses.
        shards: shards of the mesh.
        slots: slots of each.
        steps: steps to simulate.
    """
    trained = [0]  # when each step has its groups
    begun: list[tuple[int, int]] = []  # begin and end of each response
    stale = [0, 0]  # tokens sampled before the last update, and all, of the steps that count
    for complete, (end, spans) in enumerate(_groups_by_end(lengths, shards, slots), start=1):
        begun += spans
        if len(trained) > steps:  # the first half fills the slots
            stale[0] += sum(max(min(e, trained[-1]) - b, 0) for b, e in spans)
            stale[1] += sum(e - b for b, e in spans)
        if complete % QUESTIONS == 0:
            trained.append(end)
            if len(trained) > 2 * steps:
                break
    first, last = trained[steps], trained[-1]
    tokens = sum(max(min(e, last) - max(b, first), 0) for b, e in begun)
    reads = sum(_reads(e - b) for b, e in begun if first < e <= last)
    # responses that end later have used slots, too, so that this is a lower bound
    busy = tokens / ((last - first) * shards * slots)
    return Outcome((last - first) / steps, busy, reads / steps / shards, stale[0] / stale[1])


def _groups_by_end(
    lengths: Lengths, shards: int, slots: int
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yields groups in the order in which they are complete: when, and the begin and end of each
    response. Free slots take the next response of their shard, or a new group.
    """
    free = [(0, shard) for shard in range(shards) for _ in range(slots)]
    heapq.heapify(free)
    queues: list[list[tuple[int, int]]] = [[] for _ in range(shards)]  # (length, group)
    members: dict[int, list[tuple[int, int]]] = {}
    ends: list[tuple[int, int]] = []  # (when, group), not before anything that is still to come
    for number in itertools.count():
        now, shard = free[0]
        while ends and ends[0][0] <= now:
            end, group = heapq.heappop(ends)
            yield end, members.pop(group)
        if not queues[shard]:
            _, drawn = lengths.group()
            queues[shard] = [(int(n), number) for n in drawn]
        length, group = queues[shard].pop()
        heapq.heapreplace(free, (now + length, shard))
        spans = members.setdefault(group, [])
        spans.append((now, now + length))
        if len(spans) == GROUP:
            heapq.heappush(ends, (max(e for _, e in spans), group))


if __name__ == "__main__":
    command(run)
