"""The sampler: requests in, completions out, on the policy's own mesh.

Compiles a prefill and a decode program for each (prompt bucket, response capacity) pair, another decode where whole groups share
their prompts and where top-k, top-p or min-p is used, and one that lays the learner's params out for decoding. Everything else
(weights, sampling settings, stop tokens, keys, how many prompts and rollouts) is an argument of these.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from p2o_jax import runtime
from p2o_jax.config import Rollout
from p2o_jax.models import lora, sharding
from p2o_jax.models.spec import ModelSpec
from p2o_jax.records import Completion, Request, Sampling
from p2o_jax.rollout import decode, sampling, waves

Progress = Callable[[int], None]  # called with the number of rollouts finished since the last call


class Work(NamedTuple):
    """What decoding has done: slots in use and slots computed, each summed over steps, and steps of the longest shard."""

    busy: int
    computed: int
    steps: int


class _Shape(NamedTuple):
    """Rows of a shard's bank, prompts prefilled at a time, and how many rollouts read a row together (1: each slot gathers its own)."""

    rows: int
    chunk: int
    group: int


class Engine:
    """Samples completions for any number of requests, in waves of fixed shapes.

    Args:
        capacities: response lengths to make room for; a call uses the smallest that holds its `max_new_tokens`.
        stop_ids: tokens that end a rollout; the one that ended it is part of the completion.
    """

    def __init__(
        self, spec: ModelSpec, mesh: Mesh, cfg: Rollout, capacities: Sequence[int], stop_ids: Sequence[int], pad_id: int, dtype: Any
    ):
        self.spec = replace(spec, lora=None)  # adapters are merged when the params are laid out
        self.mesh, self.cfg, self.dtype, self.pad_id = mesh, cfg, dtype, pad_id
        self.capacities = sorted(set(capacities))
        self.num_shards = sharding.num_shards(mesh)
        self.max_rollouts = -(-max(cfg.questions * cfg.group_size, cfg.slots) // self.num_shards)  # of a wave, per shard
        self.rows = sharding.batch_sharding(mesh)
        stop_V = np.zeros(spec.vocab_rows, bool)
        stop_V[list(stop_ids)] = True
        self.stop_V = runtime.put(stop_V, sharding.replicated(mesh))
        self._lay_out = jax.jit(functools.partial(_to_rollout_layout, spec, dtype), out_shardings=_rollout_shardings(self.spec, mesh))
        self._empty_bank = jax.jit(lambda rows, P: decode.empty_cache(spec, rows, P, dtype), static_argnums=(0, 1), out_shardings=self.rows)
        self._prefill = self._compile_prefill()
        self._decode = {key: self._compile_decode(*key) for key in itertools.product(self.capacities, {1, cfg.group_size}, (False, True))}
        self._work = Work(0, 0, 0)

    def lay_out(self, params: Any) -> Any:
        """The learner's params as decoding wants them: compute dtype, split over tensor only, one tree per layer."""
        return self._lay_out(params)

    def take_work(self) -> "Work":
        """The decode loops' work since the last call."""
        taken, self._work = self._work, Work(0, 0, 0)
        return taken

    def generate(
        self, weights: Any, requests: Sequence[Request], how: Sampling, key: jax.Array, progress: Progress = lambda n: None
    ) -> list[Completion]:
        """A completion for each request, in order; its tokens depend on (weights, prompt, key, name) alone.

        Raises:
            ValueError: a prompt or `max_new_tokens` is longer than what the engine was built for.
        """
        capacity = min((c for c in self.capacities if c >= how.max_new_tokens), default=0)
        if not capacity:
            raise ValueError(f"max_new_tokens={how.max_new_tokens} is more than the sampler was built for: {self.capacities}")
        completions: dict[int, Completion] = {}
        banks = {bucket: self._bank_rows(bucket)[0] for bucket in self.cfg.prompt_buckets}
        for wave in waves.plan(requests, banks, self.num_shards, self.max_rollouts):
            completions |= self._run(weights, wave, requests, how, key, capacity)
            progress(sum(len(s.queue) for s in wave.shards))
        return [completions[i] for i in range(len(requests))]

    def _run(
        self, weights: Any, wave: waves.Wave, requests: Sequence[Request], how: Sampling, key: jax.Array, capacity: int
    ) -> dict[int, Completion]:
        shape = self._shape(wave)
        token_XP, length_X, queue = self._arrays(wave, requests, shape.rows)
        bank = self._empty_bank(shape.rows * self.num_shards, wave.bucket)
        tokens, lengths = (x.reshape(self.num_shards, -1, *x.shape[1:]) for x in (token_XP, length_X))
        for first in range(0, max(len(s.prompts) for s in wave.shards), shape.chunk):
            part = (x[:, first : first + shape.chunk].reshape(-1, *x.shape[2:]) for x in (tokens, lengths))
            bank = self._prefill(weights, bank, *(runtime.put(x, self.rows) for x in part), jnp.int32(first))
        run = self._decode[capacity, shape.group, sampling.filters(how)]
        out = run(weights, bank, queue, self.stop_V, key, sampling.knobs(how), jnp.int32(how.max_new_tokens))
        token_NS, logp_NS, length_N, busy, computed, steps = (runtime.to_host(x) for x in out)
        before = self._work
        self._work = Work(before.busy + int(busy.sum()), before.computed + int(computed.sum()), before.steps + int(steps.max()))
        completions = {}
        for s, shard in enumerate(wave.shards):
            for n, (request, _) in enumerate(shard.queue, start=s * self.max_rollouts):
                ids = token_NS[n, : length_N[n]].copy()
                stopped = bool(self._stops[ids[-1]])
                completions[request] = Completion(ids, logp_NS[n, : length_N[n]].copy(), stopped)
        return completions

    def _shape(self, wave: waves.Wave) -> "_Shape":
        """How the wave is run: with shared reads of the bank where whole groups ask the same few prompts, as plain GRPO does."""
        held, chunk = self._bank_rows(wave.bucket)
        group = self.cfg.group_size
        shared = -(-self.max_rollouts // group)
        members = [Counter(row for _, row in s.queue) for s in wave.shards if s.queue]
        if group == 1 or shared > held or any(max(m.values()) > group or len(m) > shared or m.total() < 2 * len(m) for m in members):
            return _Shape(held, chunk, 1)
        chunk = min(chunk, shared)
        return _Shape(-(-shared // chunk) * chunk, chunk, group)

    def _bank_rows(self, bucket: int) -> tuple[int, int]:
        """Prompts of this bucket that a shard can hold in a wave, and how many of them are prefilled at a time."""
        chunk = max(self.cfg.prefill_tokens // self.num_shards // bucket, 1)
        held = max(self.cfg.bank_tokens // self.num_shards // bucket, 1)
        chunk = min(chunk, held)
        return held // chunk * chunk, chunk

    @functools.cached_property
    def _stops(self) -> np.ndarray:
        return runtime.to_host(self.stop_V)

    def _arrays(self, wave: waves.Wave, requests: Sequence[Request], rows: int) -> tuple[np.ndarray, np.ndarray, decode.Queue]:
        """Prompt tokens [shards * M, P], their lengths, and the queues of all shards, one after the other."""
        M, N = rows, self.max_rollouts
        token = np.full((self.num_shards, M, wave.bucket), self.pad_id, np.int32)
        length = np.ones((self.num_shards, M), np.int32)
        prompt, member = np.zeros((self.num_shards, N), np.int32), np.zeros((self.num_shards, N), np.int32)
        name = np.zeros((self.num_shards, N, 2), np.uint32)
        for s, shard in enumerate(wave.shards):
            for m, ids in enumerate(shard.prompts):
                token[s, m, : len(ids)], length[s, m] = ids, len(ids)
            if shard.queue:
                prompt[s, : len(shard.queue)] = [row for _, row in shard.queue]
                groups = itertools.groupby(row for _, row in shard.queue)
                member[s, : len(shard.queue)] = [n for _, same in groups for n, _ in enumerate(same)]
                name[s, : len(shard.queue)] = runtime.name_words([requests[i].name for i, _ in shard.queue])
        last = np.take_along_axis(token, length[:, :, None] - 1, axis=2)[:, :, 0]
        count = np.array([len(s.queue) for s in wave.shards], np.int32)
        token, length, *queue = (x.reshape(-1, *x.shape[2:]) for x in (token, length, last, length, prompt, member, name))
        return token, length, decode.Queue(*(runtime.put(x, self.rows) for x in (*queue, count)))

    def _compile_prefill(self) -> Any:
        def run(weights: Any, bank: Any, token_MP: Any, length_M: Any, first: Any) -> Any:
            return decode.prefill(self.spec, weights, bank, token_MP, length_M, first, self.dtype)

        return jax.jit(self._over_shards(run, (False, True, True, True, False)), donate_argnums=1)

    def _compile_decode(self, capacity: int, group: int, filtered: bool) -> Any:
        run = functools.partial(
            decode.decode,
            self.spec,
            num_slots=self.cfg.slots // self.num_shards,
            min_slots=self.cfg.min_slots,
            max_positions=capacity,
            group=group,
            filtered=filtered,
            dtype=self.dtype,
        )
        return jax.jit(self._over_shards(run, (False, True, True, False, False, False, False)))

    def _over_shards(self, run: Any, split: tuple[bool, ...]) -> Any:
        """The function run by every shard on its own rows of the `split` arguments; the tensor axis is left to the compiler."""
        rows, whole = PartitionSpec(sharding.BATCH_AXES), PartitionSpec()
        return jax.shard_map(
            run,
            mesh=self.mesh,
            in_specs=tuple(rows if s else whole for s in split),
            out_specs=rows,
            axis_names=set(sharding.BATCH_AXES),
            check_vma=False,
        )


def _to_rollout_layout(spec: ModelSpec, dtype: Any, params: Any) -> Any:
    params = jax.tree.map(lambda w: w.astype(dtype), lora.merge(spec, params))
    blocks = tuple(jax.tree.map(lambda w: w[layer], params["blocks"]) for layer in range(spec.layers))
    return params | {"blocks": blocks}


def _rollout_shardings(spec: ModelSpec, mesh: Mesh) -> Any:
    stacked = sharding.param_shardings(spec, mesh, sharding.ROLLOUT)
    block = jax.tree.map(lambda s: jax.sharding.NamedSharding(mesh, PartitionSpec(*s.spec[1:])), stacked["blocks"])
    return stacked | {"blocks": (block,) * spec.layers}
