"""The sampler: requests in, completions out, on the policy's own mesh.

Programs (`Program`) are those of each prompt bucket and response capacity: a prompt cache, prefill,
slots, and decoding with all slots or fewer, with whole groups that read their prompts together or
not, with top-k, top-p and min-p or not. Everything else (weights, sampling settings, stop tokens,
keys, how many prompts and rollouts) is an argument of these.
"""

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from p2o_jax.config import RolloutConfig
from p2o_jax.models import lora, sharding, transformer
from p2o_jax.models.attention import decoding
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rollout import decode, prefill, scheduler, token_sampling
from p2o_jax.rollout.programs import Programs
from p2o_jax.runtime import distributed, rng
from p2o_jax.types import Completion, Request, SamplingParams

Finished = list[tuple[int, Completion]]  # index of the request, and what was sampled
Progress = Callable[[int], None]  # called with the number of rollouts finished since the last call

STRETCHES = 8  # of a wave: so many times rollouts reach the host, about


class Work(NamedTuple):
    """What sampling has done."""

    busy: int = 0  # slots in use and slots computed in decoding, each summed over steps
    computed: int = 0
    steps: int = 0  # of decoding
    prefilled: int = 0  # prompt tokens computed, padding included
    prompt_tokens: int = 0  # prompt tokens of the distinct prompts of each wave
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    tail_seconds: float = 0.0  # of decoding, with no rollout left in a queue

    def plus(self, other: "Work") -> "Work":
        added: Any = (a + b for a, b in zip(self, other, strict=True))
        return Work(*added)

    def metrics(self) -> dict[str, float]:
        """perf/* of this work; shares of nothing are absent."""
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


class Program(NamedTuple):
    """The name of a program, and the sizes per shard that make it: fields a kind of program does
    not depend on are left out.
    """

    kind: Literal["prompt cache", "prefill", "slots", "decode", "pack"]
    bucket: int = 0  # prompt tokens; of slots, those of the prompts they hold copies of
    rows: int = 0  # of the prompt cache
    capacity: int = 0  # response tokens
    size: int = 0  # slots
    group: int = 1  # rollouts that read a prompt cache row together (1: each slot its own)
    filtered: bool = False


class Engine:
    """Samples completions for any number of requests, in waves of fixed shapes.

    Args:
        capacities: response lengths to make room for; a call uses the smallest that holds its
            `max_new_tokens`.
        stop_ids: tokens that end a rollout; the one that ended it is part of the completion.
        grouped_up_to: tokens of the longest prompt that whole groups share; None: of any prompt.
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
    ):
        assert cfg.slots > 0, "rollout.memory.fitting finds the number of slots"
        self.spec = replace(spec, lora=None)  # adapters are merged when the params are laid out
        self.mesh, self.cfg, self.dtype, self.pad_id = mesh, cfg, dtype, pad_id
        self.cache_dtype = jnp.int8 if cfg.cache_dtype == "int8" else dtype
        self.kept = decoding.for_mesh(mesh, spec.kv_heads, spec.head_dim)
        self.capacities = sorted(set(capacities))
        self.grouped_up_to = max(cfg.prompt_buckets) if grouped_up_to is None else grouped_up_to
        self.num_shards = sharding.num_shards(mesh)
        # shards are dealt equal numbers of tokens, not of rollouts
        slack = 1.25 if self.num_shards > 1 else 1.0
        # of a wave, per shard
        self.max_rollouts = -(
            -int(max(cfg.questions * cfg.group_size, cfg.slots) * slack) // self.num_shards
        )
        # elsewhere kernels read nothing for idle slots, and weights weigh more
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self.sizes = decode.sizes(cfg.slots // self.num_shards, cfg.min_slots if on_cpu else 0)
        self.whole, self.rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        split = "tensor" if spec.kv_heads % mesh.shape["tensor"] == 0 else None
        self.caches = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES, split))
        stop_V = np.zeros(spec.vocab_rows, bool)
        stop_V[list(stop_ids)] = True
        self.stop_V = stop_V
        self._lay_out = jax.jit(
            functools.partial(_to_rollout_layout, spec, dtype),
            out_shardings=_rollout_shardings(self.spec, mesh),
        )
        self.programs = Programs(self.lower)
        self.work = Work()

    def to_rollout_layout(self, params: Any) -> Any:
        """The learner's params as decoding wants them: compute dtype, split over tensor only,
        one tree per layer.
        """
        return self._lay_out(params)

    def take_work(self) -> Work:
        """What was done since the last call (`work` grows meanwhile)."""
        taken, self.work = self.work, Work()
        return taken

    def generate(
        self,
        weights: Any,
        requests: Sequence[Request],
        how: SamplingParams,
        key: jax.Array,
        progress: Progress = lambda n: None,
    ) -> list[Completion]:
        """A completion for each request, in order; see `stream`."""
        completions: dict[int, Completion] = {}
        for finished in self.stream(weights, requests, how, key):
            completions.update(finished)
            progress(len(finished))
        return [completions[i] for i in range(len(requests))]

    def stream(
        self, weights: Any, requests: Sequence[Request], how: SamplingParams, key: jax.Array
    ) -> Iterator[Finished]:
        """Completions as they get ready; while the caller works on them, the devices go on with the
        next stretch.

        Tokens depend on (weights, prompt, key, name) alone; with an int8 cache on the prompt's
        bucket, too.

        Raises:
            ValueError: a prompt or `max_new_tokens` is longer than what the engine was built for,
                or a prompt holds a token id beyond the embedding, of which the model would make
                NaN.
        """
        capacity = self._capacity(how)
        scheduler.check_ids(requests, self.spec.vocab)
        held = {bucket: self._held(bucket) for bucket in self.cfg.prompt_buckets}
        for wave in scheduler.plan(requests, held, self.num_shards, self.max_rollouts):
            yield from self._run(weights, wave, requests, how, key, capacity)

    def _run(
        self,
        weights: Any,
        wave: scheduler.Wave,
        requests: Sequence[Request],
        how: SamplingParams,
        key: jax.Array,
        capacity: int,
    ) -> Iterator[Finished]:
        start = time.monotonic()
        rows, group = self._shape(wave)
        prompt_cache = self._prefilled(weights, wave, rows)
        queue = self._queue(wave, requests, rows)
        jax.block_until_ready(prompt_cache)
        began = time.monotonic()
        self.work = self.work.plus(Work(prefill_seconds=began - start))
        copied = self.copied(wave.bucket, group)
        run = self.programs[Program("slots", copied, capacity=capacity)]()
        fixed = (
            np.asarray(jax.random.key_data(key)),
            token_sampling.to_scalars(how),
            np.int32(how.max_new_tokens),
        )

        def go_on(
            run: decode.DecodeState, size: int
        ) -> tuple[decode.DecodeState, decode.DecodeChunk]:
            step = self.programs[
                Program(
                    "decode", wave.bucket, rows, capacity, size, group, token_sampling.filters(how)
                )
            ]
            return step(weights, prompt_cache, queue, run, self.stop_V, *fixed)

        sizes, all_fit = list(self.sizes), max(len(s.queue) for s in wave.shards) <= self.sizes[0]
        tail_began = began if all_fit else 0.0
        run, out = go_on(run, sizes[0])
        while True:
            left, waiting = (
                int(distributed.to_host(out.left)[0]),
                int(distributed.to_host(out.waiting)[0]),
            )
            ended = out
            if not waiting:
                tail_began = tail_began or time.monotonic()
                while left and len(sizes) > 1 and left <= sizes[1]:
                    packed = self.programs[
                        Program("pack", copied, capacity=capacity, size=sizes.pop(0))
                    ](run.rows)
                    run = run._replace(rows=packed)
            if left:
                run, out = go_on(run, sizes[0])  # it runs while the host works on what has ended
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

    def _finished(self, wave: scheduler.Wave, out: Any) -> Finished:
        """What a stretch hands out, as the host knows it."""
        host = jax.tree.map(distributed.to_host, out)
        self.work = self.work.plus(
            Work(int(host.busy.sum()), int(host.computed.sum()), int(host.steps.max()))
        )
        per_shard = len(host.rollout_F) // self.num_shards
        found = []
        for s, shard in enumerate(wave.shards):
            for n in range(s * per_shard, s * per_shard + int(host.number[s])):
                request, _ = shard.queue[host.rollout_F[n]]
                ids, length = host.token_FS[n], host.length_F[n]
                stopped = bool(self.stop_V[ids[length - 1]])
                found.append(
                    (
                        request,
                        Completion(ids[:length].copy(), host.logp_FS[n, :length].copy(), stopped),
                    )
                )
        return found

    def _capacity(self, how: SamplingParams) -> int:
        capacity = min((c for c in self.capacities if c >= how.max_new_tokens), default=0)
        if not capacity:
            raise ValueError(
                f"max_new_tokens={how.max_new_tokens} is more than the sampler was built for:"
                f" {self.capacities}"
            )
        return capacity

    def _shape(self, wave: scheduler.Wave) -> tuple[int, int]:
        """Rows of the prompt cache, and how many rollouts read one together: a group where whole
        groups ask the same few prompts.
        """
        held, group = self._held(wave.bucket), self.cfg.group_size
        shared = self._shared(wave.bucket)
        members = [Counter(row for _, row in s.queue) for s in wave.shards if s.queue]
        if not shared or any(
            max(m.values()) > group or len(m) > shared or m.total() < 2 * len(m) for m in members
        ):
            return held, 1
        return shared, group

    def _held(self, bucket: int) -> int:
        """Prompts of this bucket that a shard can hold in a wave."""
        return min(
            max(self.cfg.prompt_cache_tokens // self.num_shards // bucket, 1), self.max_rollouts
        )

    def _shared(self, bucket: int) -> int:
        """Prompts of a shard's wave of whole groups; 0 where no groups come so long, or the
        prompt cache can't hold so many.
        """
        rows, previous = (
            -(-self.max_rollouts // self.cfg.group_size),
            max((b for b in self.cfg.prompt_buckets if b < bucket), default=0),
        )
        return (
            rows
            if self.cfg.group_size > 1
            and previous < self.grouped_up_to
            and rows <= self._held(bucket)
            else 0
        )

    def pieces(self, bucket: int, rows: int) -> int:
        """Prompts that a shard prefills a chunk of at a time."""
        return min(max(self.cfg.prefill_tokens // prefill.chunk_of(bucket), 1), rows)

    def _prefilled(self, weights: Any, wave: scheduler.Wave, rows: int) -> decode.Caches:
        """The prompt cache with the wave's prompts."""
        chunk, m = prefill.chunk_of(wave.bucket), self.pieces(wave.bucket, rows)
        plans = [prefill.plan(s.prompts, chunk, self.cfg.share_prefixes) for s in wave.shards]
        prompt_cache = self.programs[Program("prompt cache", wave.bucket, rows)]()
        run = self.programs[Program("prefill", wave.bucket, rows)]
        for level in range(max(map(len, plans))):
            pieces = [plan[level] if level < len(plan) else [] for plan in plans]
            for first in range(0, max(map(len, pieces)), m):
                token = np.full((self.num_shards, m, chunk), self.pad_id, np.int32)
                row, source = (
                    np.full((self.num_shards, m), rows, np.int32),
                    np.zeros((self.num_shards, m), np.int32),
                )
                for s, shard in enumerate(wave.shards):
                    for n, piece in enumerate(pieces[s][first : first + m]):
                        ids = shard.prompts[piece.row][:-1][level * chunk : (level + 1) * chunk]
                        token[s, n, : len(ids)], row[s, n], source[s, n] = (
                            ids,
                            piece.row,
                            piece.source,
                        )
                at = [self._put(x) for x in (token, row, source)]
                prompt_cache = run(weights, prompt_cache, *at, np.int32(level))
                self.work = self.work.plus(Work(prefilled=token.size))
        prompt_tokens = sum(len(prompt) - 1 for shard in wave.shards for prompt in shard.prompts)
        self.work = self.work.plus(Work(prompt_tokens=prompt_tokens))
        return prompt_cache

    def _queue(self, wave: scheduler.Wave, requests: Sequence[Request], rows: int) -> decode.Queue:
        """The queues of all shards, one after the other."""
        S, N = self.num_shards, self.max_rollouts
        last, length = np.zeros((S, rows), np.int32), np.ones((S, rows), np.int32)
        prompt, member = np.zeros((S, N), np.int32), np.zeros((S, N), np.int32)
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
                name[s, : len(shard.queue)] = rng.name_words(
                    [requests[i].name for i, _ in shard.queue]
                )
        size = np.array([[len(s.queue)] for s in wave.shards], np.int32)
        return decode.Queue(*(self._put(x) for x in (last, length, prompt, member, name, size)))

    def _put(self, x: np.ndarray) -> jax.Array:
        """[shards, n, ...] as [shards * n, ...], each shard's part on its devices."""
        return distributed.put(x.reshape(-1, *x.shape[2:]), self.rows)

    def shapes(self, bucket: int) -> list[tuple[int, int]]:
        """(rows, group) of the banks of this bucket: one for any prompts, and maybe one for
        whole groups.
        """
        shared = self._shared(bucket)
        return [(self._held(bucket), 1)] + ([(shared, self.cfg.group_size)] if shared else [])

    def needed(self, how: SamplingParams, longest_prompt: int) -> list[Program]:
        """The programs of any requests sampled so, with prompts up to this long, the first that
        are needed first.
        """
        capacity = self._capacity(how)
        last = min(
            (b for b in self.cfg.prompt_buckets if b >= longest_prompt),
            default=max(self.cfg.prompt_buckets),
        )
        found: list[Program] = []
        for bucket in sorted(b for b in self.cfg.prompt_buckets if b <= last):
            for rows, group in self.shapes(bucket):
                found += [Program("prompt cache", bucket, rows), Program("prefill", bucket, rows)]
                found += [
                    Program(
                        "decode", bucket, rows, capacity, size, group, token_sampling.filters(how)
                    )
                    for size in self.sizes
                ]
                copied = self.copied(bucket, group)
                found += [Program("slots", copied, capacity=capacity)]
                found += [
                    Program("pack", copied, capacity=capacity, size=size)
                    for size in self.sizes[:-1]
                ]
        return list(dict.fromkeys(found))

    def copied(self, bucket: int, group: int) -> int:
        """Tokens of the prompts whose caches the slots copy; 0 where they read the prompt cache."""
        return bucket if group == 1 and self.kept.copies_prompts else 0

    def lower(self, p: Program) -> Any:
        """The program traced for its shapes, ready to be compiled, for the devices of the mesh
        whatever they are.
        """
        make = {
            "prompt cache": self._lower_prompt_cache,
            "prefill": self._lower_prefill,
            "slots": self._lower_slots,
            "decode": self._lower_decode,
            "pack": self._lower_pack,
        }
        return make[p.kind](p)

    def _lower_prompt_cache(self, p: Program) -> Any:
        return jax.jit(lambda: self._empty_bank(p), out_shardings=self.caches).lower()

    def _empty_bank(self, p: Program) -> decode.Caches:
        return decode.empty_caches(
            self.spec,
            p.rows * self.num_shards,
            prefill.positions(p.bucket),
            self.cache_dtype,
            self.kept.cache,
        )

    def _lower_prefill(self, p: Program) -> Any:
        run = self._over_shards(functools.partial(prefill.extend, self.spec), "wrrrrw", "r")
        m = self.pieces(p.bucket, p.rows)
        args = [
            self._of_rows((m, prefill.chunk_of(p.bucket)), np.int32),
            *[self._of_rows((m,), np.int32)] * 2,
            self._scalar(np.int32),
        ]
        return jax.jit(run, donate_argnums=1, out_shardings=self.caches).lower(
            self.abstract_weights, self.abstract_prompt_cache(p), *args
        )

    def _lower_slots(self, p: Program) -> Any:
        make = functools.partial(self._begin, p._replace(size=self.sizes[0]))
        return jax.jit(self._over_shards(make, "", "r"), out_shardings=self._run_shardings).lower()

    def _begin(self, p: Program) -> decode.DecodeState:
        positions = prefill.positions(p.bucket) if p.bucket else 0
        return decode.begin(
            self.spec, p.size, self.max_rollouts, p.capacity, self.cache_dtype, self.kept, positions
        )

    def _lower_decode(self, p: Program) -> Any:
        few = self.sizes[self.sizes.index(p.size) + 1] if p.size != self.sizes[-1] else 0
        run = functools.partial(
            decode.decode_chunk,
            self.spec,
            enough=-(-self.max_rollouts // STRETCHES),
            few=few,
            group=p.group,
            filtered=p.filtered,
            kept=self.kept,
        )
        N = self.max_rollouts
        sizes = ((p.rows,), (p.rows,), (N,), (N,), (N, 2), (1,))
        queue = decode.Queue(
            *(self._of_rows(n, np.uint32 if len(n) > 1 else np.int32) for n in sizes)
        )
        how = token_sampling.abstract_scalars()
        stop_V, key, *rest = (
            self._scalar(bool, self.stop_V.shape),
            self._scalar(np.uint32, (2,)),
            how,
            self._scalar(np.int32),
        )
        args = (
            self.abstract_prompt_cache(p),
            queue,
            self.abstract_run(p._replace(bucket=self.copied(p.bucket, p.group))),
            stop_V,
            key,
            *rest,
        )
        jitted = jax.jit(
            self._over_shards(run, "wrrrwwww", "rr"),
            donate_argnums=3,
            out_shardings=(self._run_shardings, self.rows),
        )
        return jitted.lower(self.abstract_weights, *args)

    def _lower_pack(self, p: Program) -> Any:
        smaller = self.sizes[self.sizes.index(p.size) + 1]
        run = self._over_shards(functools.partial(decode.pack, num_slots=smaller), "r", "r")
        return jax.jit(run, out_shardings=self._run_shardings.rows).lower(self.abstract_run(p).rows)

    @functools.cached_property
    def abstract_weights(self) -> Any:
        """Shapes, types and shardings of what `to_rollout_layout` returns."""
        shapes = jax.eval_shape(
            lambda: _to_rollout_layout(
                self.spec, self.dtype, transformer.init(self.spec, jax.random.key(0))
            )
        )
        shardings = _rollout_shardings(self.spec, self.mesh)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        )

    @functools.cached_property
    def _run_shardings(self) -> Any:
        rows: Any = self.rows
        caches: Any = self.caches
        slots = decode.SlotState(rows, rows, rows, rows, caches, caches)
        return decode.DecodeState(slots, *[rows] * 6)

    def abstract_prompt_cache(self, p: Program) -> Any:
        """Shapes, types and shardings of a prompt cache, of all shards together."""
        shapes = jax.eval_shape(lambda: self._empty_bank(p))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.caches), shapes
        )

    def abstract_run(self, p: Program) -> Any:
        """Shapes, types and shardings of what decoding carries on, of all shards together."""
        local = jax.eval_shape(lambda: self._begin(p))
        whole = jax.tree.map(lambda x: self._of_rows(x.shape, x.dtype), local)
        shapes = (whole.rows.slots, whole.rows.prompts)
        slots, prompts = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.caches), shapes
        )
        return whole._replace(rows=whole.rows._replace(slots=slots, prompts=prompts))

    def _of_rows(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A global array of which every shard has a part of this shape."""
        return jax.ShapeDtypeStruct(
            (shape[0] * self.num_shards, *shape[1:]), dtype, sharding=self.rows
        )

    def _scalar(self, dtype: Any, shape: tuple[int, ...] = ()) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.whole)

    def _over_shards(self, run: Any, args: str, out: str) -> Any:
        """The function run by every shard on its rows of the arguments marked r, and on whole
        ones marked w; tensor is the compiler's.
        """
        rows, whole = PartitionSpec(sharding.BATCH_AXES), PartitionSpec()
        return jax.shard_map(
            run,
            mesh=self.mesh,
            in_specs=tuple(rows if a == "r" else whole for a in args),
            out_specs=rows if len(out) == 1 else tuple(rows for _ in out),
            axis_names=set(sharding.BATCH_AXES),
            check_vma=False,
        )


def _to_rollout_layout(spec: ModelSpec, dtype: Any, params: Any) -> Any:
    params = jax.tree.map(lambda w: w.astype(dtype), lora.merge(spec, params))
    blocks = tuple(
        jax.tree.map(lambda w: w[layer], params["blocks"]) for layer in range(spec.layers)
    )
    return params | {"blocks": blocks}


def _rollout_shardings(spec: ModelSpec, mesh: Mesh) -> Any:
    stacked = sharding.param_shardings(spec, mesh, sharding.ROLLOUT)
    block = jax.tree.map(
        lambda s: NamedSharding(mesh, PartitionSpec(*s.spec[1:])), stacked["blocks"]
    )
    return stacked | {"blocks": (block,) * spec.layers}
