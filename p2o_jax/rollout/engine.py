"""The sampler: requests in, completions out, on the policy's own mesh.

This is the host's side. Requests are split into waves (scheduler). A wave's prompts are prefilled,
then decoded chunk by chunk; while the host processes one chunk's rollouts, the devices decode the
next.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from p2o_jax.config import RolloutConfig
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rollout import prefill, scheduler, token_sampling
from p2o_jax.rollout.decode_state import DecodeChunk, DecodeState, Queue
from p2o_jax.rollout.layer_caches import Caches
from p2o_jax.rollout.program_cache import ProgramCache
from p2o_jax.rollout.programs import Program, SamplerPrograms
from p2o_jax.runtime import distributed, rng
from p2o_jax.types import Completion, Request, SamplingParams

Finished = list[tuple[int, Completion]]  # (index of the request, its completion)
Progress = Callable[[int], None]  # called with the number of rollouts finished since the last call
NO_LIMIT = np.iinfo(np.int32).max  # of the tokens of a response


class Work(NamedTuple):
    """Counters of what sampling has done."""

    busy: int = 0  # active slots and computed slots, each summed over decode steps
    computed: int = 0
    steps: int = 0  # decode steps
    prefilled: int = 0  # prompt tokens computed, including padding
    prompt_tokens: int = 0  # prompt tokens of each wave's distinct prompts
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    tail_seconds: float = 0.0  # decoding time after the last queue became empty

    def plus(self, other: "Work") -> "Work":
        """Returns the sum of both."""
        added: Any = (a + b for a, b in zip(self, other, strict=True))
        return Work(*added)

    def metrics(self) -> dict[str, float]:
        """Returns perf/* of this work; shares of nothing are absent."""
        seconds = self.prefill_seconds + self.decode_seconds
        shares = {
            "perf/frac_slots_busy": (self.busy, self.computed),
            "perf/frac_prompt_tokens_computed": (self.prefilled, self.prompt_tokens),
            "perf/frac_prefill_time": (self.prefill_seconds, seconds),
            "perf/frac_tail_time": (self.tail_seconds, seconds),
        }
        return {
            "perf/decode_steps": float(self.steps),
            **{name: part / whole for name, (part, whole) in shares.items() if whole},
        }


class _Call(NamedTuple):
    """The arguments of one sampling call."""

    weights: Any
    requests: Sequence[Request]
    sampling: SamplingParams
    key: jax.Array
    capacity: int


class Engine(SamplerPrograms):
    """Samples completions for any number of requests, in waves of fixed shapes.

    Args:
        spec: the model; adapters are merged into its weights.
        mesh: devices, with the axes of models.sharding.
        cfg: settings of rollouts; `slots` must be set.
        capacities: response lengths to allocate; a call uses the smallest that holds its
            `max_new_tokens`.
        stop_ids: tokens that end a rollout. The stop token is part of the completion.
        pad_id: token id of padding.
        dtype: compute dtype.
        grouped_up_to: length in tokens of the longest prompt that whole groups share; None: any
            length.
        record_experts: whether completions have the experts that computed their tokens.
    """

    def __init__(
        self,
        spec: ModelSpec,
        mesh: Mesh,
        cfg: RolloutConfig,
        capacities: Sequence[int],
        stop_ids: Sequence[int],
        pad_id: int,
        dtype: Any,
        grouped_up_to: int | None = None,
        record_experts: bool = False,
    ):
        super().__init__(
            spec, mesh, cfg, capacities, stop_ids, dtype, grouped_up_to, record_experts
        )
        self.pad_id = pad_id
        self.programs = ProgramCache(self.lower)
        self.work = Work()

    def to_rollout_layout(self, params: Any) -> Any:
        """Converts the learner's params for decoding: compute dtype, split over tensor only, one
        tree per layer.
        """
        return self._to_layout(params)

    def close(self) -> None:
        """Stops compiling in the background."""
        self.programs.close()

    def take_work(self) -> Work:
        """Returns the work since the last call, and resets it."""
        taken, self.work = self.work, Work()
        return taken

    def generate(
        self,
        weights: Any,
        requests: Sequence[Request],
        sampling: SamplingParams,
        key: jax.Array,
        progress: Progress = lambda n: None,
    ) -> list[Completion]:
        """Returns a completion for each request, in order.

        Args:
            weights: params in rollout layout.
            requests: prompts and names.
            sampling: how tokens are drawn.
            key: key of the call.
            progress: called with the number of newly finished rollouts.

        Raises:
            ValueError: see `stream`.
        """
        completions: dict[int, Completion] = {}
        for finished in self.stream(weights, requests, sampling, key):
            completions.update(finished)
            progress(len(finished))
        return [completions[i] for i in range(len(requests))]

    def stream(
        self, weights: Any, requests: Sequence[Request], sampling: SamplingParams, key: jax.Array
    ) -> Iterator[Finished]:
        """Yields completions as they finish. The devices decode the next chunk while the caller
        works on them.

        Tokens depend only on (weights, prompt, key, name), and with an int8 cache also on the
        prompt's bucket.

        Raises:
            ValueError: a prompt or `max_new_tokens` exceeds what the engine was built for, or a
                prompt holds a token id outside the embedding, which would give NaN.
        """
        call = _Call(weights, requests, sampling, key, self.capacity(sampling))
        scheduler.check(requests, self.spec.vocab)
        max_prompts = {bucket: self.max_prompts(bucket) for bucket in self.cfg.prompt_buckets}
        for wave in scheduler.plan(requests, max_prompts, self.num_shards, self.max_rollouts):
            yield from self._run(call, wave)

    def _run(self, call: _Call, wave: scheduler.Wave) -> Iterator[Finished]:
        """Prefills a wave, and returns an iterator that decodes it."""
        start = time.monotonic()
        rows, group = self._shape(wave)
        prompt_cache = self._prefilled(call.weights, wave, rows)
        queue = self._queue(wave, call.requests, rows)
        jax.block_until_ready(prompt_cache)
        self.work = self.work.plus(Work(prefill_seconds=time.monotonic() - start))
        decode_arguments = (
            self.stop_V,
            np.asarray(jax.random.key_data(call.key)),
            token_sampling.to_scalars(call.sampling),
            np.int32(call.sampling.max_new_tokens),
        )
        filtered = token_sampling.filters(call.sampling)

        def decode(state: DecodeState, size: int) -> tuple[DecodeState, DecodeChunk]:
            key = Program("decode", wave.bucket, rows, call.capacity, size, group, filtered)
            program = self.programs[key]
            return program(call.weights, prompt_cache, queue, state, *decode_arguments)

        return self._decode(wave, decode, call.capacity, self.copied(wave.bucket, group))

    def _decode(
        self,
        wave: scheduler.Wave,
        decode: Callable[[DecodeState, int], tuple[DecodeState, DecodeChunk]],
        capacity: int,
        copied: int,
    ) -> Iterator[Finished]:
        """Yields the completions of a wave, chunk by chunk; moves to fewer slots when few rollouts
        are left.
        """
        began = time.monotonic()
        sizes = list(self.sizes)
        all_fit = max(len(shard.queue) for shard in wave.shards) <= sizes[0]
        tail_began = began if all_fit else 0.0
        state = self.programs[Program("slots", copied, capacity=capacity)]()
        state, chunk = decode(state, sizes[0])
        while True:
            left = int(distributed.to_host(chunk.left)[0])
            waiting = int(distributed.to_host(chunk.waiting)[0])
            ended = chunk
            if not waiting:
                tail_began = tail_began or time.monotonic()
                while left and len(sizes) > 1 and left <= sizes[1]:
                    pack = self.programs[
                        Program("pack", copied, capacity=capacity, size=sizes.pop(0))
                    ]
                    state = state._replace(slots=pack(state.slots))
            if left:
                # the next chunk runs while the host works on the one that has ended
                state, chunk = decode(state, sizes[0])
            else:
                now = time.monotonic()
                self.work = self.work.plus(
                    Work(decode_seconds=now - began, tail_seconds=now - tail_began)
                )
            finished = self._finished(wave, ended)
            if finished:
                yield finished
            if not left:
                return

    def _finished(self, wave: scheduler.Wave, chunk: DecodeChunk) -> Finished:
        """Converts a chunk's finished rollouts to completions on the host."""
        if self.record_experts:  # of several hosts, each gets those of all: as few as there are
            longest = max(int(distributed.to_host(chunk.length_n).max()), 1)
            positions = min(1 << (longest - 1).bit_length(), chunk.choice_nRX.shape[1])
            chunk = chunk._replace(choice_nRX=chunk.choice_nRX[:, :positions])
        host: Any = jax.tree.map(distributed.to_host, chunk)
        self.work = self.work.plus(
            Work(int(host.busy.sum()), int(host.computed.sum()), int(host.steps.max()))
        )
        per_shard = len(host.rollout_n) // self.num_shards
        finished = []
        for s, shard in enumerate(wave.shards):
            for n in range(s * per_shard, s * per_shard + int(host.number[s])):
                request, _ = shard.queue[host.rollout_n[n]]
                ids, length = host.token_nR[n], host.length_n[n]
                stopped = bool(self.stop_V[ids[length - 1]])
                completion = Completion(
                    ids[:length].copy(),
                    host.logp_nR[n, :length].copy(),
                    stopped,
                    host.choice_nRX[n, :length].copy(),
                )
                finished.append((request, completion))
        return finished

    def _shape(self, wave: scheduler.Wave) -> tuple[int, int]:
        """Returns the rows of the prompt cache, and how many rollouts read a row together: whole
        groups if the wave consists of them.
        """
        max_prompts, group = self.max_prompts(wave.bucket), self.cfg.group_size
        shared = self.shared_rows(wave.bucket)
        members = [Counter(row for _, row in s.queue) for s in wave.shards if s.queue]
        if not shared or any(
            max(m.values()) > group or len(m) > shared or m.total() < 2 * len(m) for m in members
        ):
            return max_prompts, 1
        return shared, group

    def _prefilled(self, weights: Any, wave: scheduler.Wave, rows: int) -> Caches:
        """Returns the prompt cache with the wave's prompts."""
        chunk, m = prefill.chunk_of(wave.bucket), self.pieces(wave.bucket, rows)
        plans = [prefill.plan(s.prompts, chunk, self.cfg.share_prefixes) for s in wave.shards]
        prompt_cache = self.programs[Program("prompt_cache", wave.bucket, rows)]()
        extend = self.programs[Program("prefill", wave.bucket, rows)]
        for level in range(max(map(len, plans))):
            pieces = [plan[level] if level < len(plan) else [] for plan in plans]
            for first in range(0, max(map(len, pieces)), m):
                token = np.full((self.num_shards, m, chunk), self.pad_id, np.int32)
                count, source = np.zeros((2, self.num_shards, m), np.int32)
                row = np.full((self.num_shards, m), rows, np.int32)
                for s, shard in enumerate(wave.shards):
                    for n, piece in enumerate(pieces[s][first : first + m]):
                        ids = shard.prompts[piece.row][:-1][level * chunk : (level + 1) * chunk]
                        token[s, n, : len(ids)], count[s, n] = ids, len(ids)
                        row[s, n], source[s, n] = piece
                at = [self._put(x) for x in (token, count, row, source)]
                prompt_cache = extend(weights, prompt_cache, *at, np.int32(level))
                self.work = self.work.plus(Work(prefilled=token.size))
        prompt_tokens = sum(len(prompt) - 1 for shard in wave.shards for prompt in shard.prompts)
        self.work = self.work.plus(Work(prompt_tokens=prompt_tokens))
        return prompt_cache

    def _queue(self, wave: scheduler.Wave, requests: Sequence[Request], rows: int) -> Queue:
        """Returns the queues of all shards, concatenated."""
        S, N = self.num_shards, self.max_rollouts
        last, length = np.zeros((S, rows), np.int32), np.ones((S, rows), np.int32)
        prompt, member = np.zeros((S, N), np.int32), np.zeros((S, N), np.int32)
        limit = np.full((S, N), NO_LIMIT, np.int32)
        name = np.zeros((S, N, 2), np.uint32)
        for s, shard in enumerate(wave.shards):
            if shard.queue:
                last[s, : len(shard.prompts)] = [ids[-1] for ids in shard.prompts]
                length[s, : len(shard.prompts)] = [len(ids) for ids in shard.prompts]
                prompt[s, : len(shard.queue)] = [row for _, row in shard.queue]
                groups = itertools.groupby(row for _, row in shard.queue)
                member[s, : len(shard.queue)] = [
                    n for _, same in groups for n, _ in enumerate(same)
                ]
                limits = [requests[i].max_new_tokens for i, _ in shard.queue]
                limit[s, : len(limits)] = [n or NO_LIMIT for n in limits]
                name[s, : len(shard.queue)] = rng.name_words(
                    [requests[i].name for i, _ in shard.queue]
                )
        size = np.array([[len(s.queue)] for s in wave.shards], np.int32)
        return Queue(*(self._put(x) for x in (last, length, prompt, member, limit, name, size)))

    def _put(self, x: np.ndarray) -> jax.Array:
        """Places [shards, n, ...] as [shards * n, ...], each shard's part on its devices."""
        return distributed.put(x.reshape(-1, *x.shape[2:]), self.rows)
