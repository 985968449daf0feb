"""The compiled programs of the sampler: their sizes, their keys, and how a key is lowered and
compiled.

A program exists for fixed shapes. There is one for each prompt bucket and response capacity of: an
empty prompt cache, prefill, idle slots, and decoding, the last with all slots or fewer, with groups
that read their prompt together or not, and with top-k, top-p and min-p or not. Everything else is
an argument: weights, sampling settings, stop tokens, keys, and the numbers of prompts and rollouts.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from p2o_jax.config import RolloutConfig
from p2o_jax.models import experts, lora, sharding, transformer
from p2o_jax.models.attention import decoding
from p2o_jax.models.spec import ModelSpec, Weight, weights
from p2o_jax.rollout import decode, decode_state, layer_caches, prefill, token_sampling
from p2o_jax.rollout.layer_caches import Caches
from p2o_jax.types import SamplingParams

CHUNKS_PER_WAVE = 8  # finished rollouts reach the host about this often


class Program(NamedTuple):
    """Key of a program: its kind and sizes per shard. Sizes that do not matter for the kind keep
    their default.
    """

    kind: Literal["prompt_cache", "prefill", "slots", "decode", "pack"]
    bucket: int = 0  # prompt tokens; for slots: of the prompts that they hold copies of
    rows: int = 0  # rows of the prompt cache
    capacity: int = 0  # response tokens
    size: int = 0  # slots
    group: int = 1  # rollouts that read a prompt cache row together; 1: each slot its own
    filtered: bool = False


class SamplerPrograms:
    """The sizes of a sampler on a mesh, and the programs that follow from them.

    Args:
        spec: the model.
        mesh: devices, with the axes of models.sharding. They need not exist to lower programs.
        cfg: settings of rollouts; `slots` must be set.
        capacities: response lengths to allocate; a call uses the smallest that holds its
            `max_new_tokens`.
        stop_ids: tokens that end a rollout.
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
        dtype: Any,
        grouped_up_to: int | None = None,
        record_experts: bool = False,
    ):
        assert cfg.slots > 0, "rollout.memory.fitting finds the number of slots"
        # adapters are merged when the params are converted to rollout layout
        self.spec = replace(spec, lora=None)
        self.mesh, self.cfg, self.dtype, self.record_experts = mesh, cfg, dtype, record_experts
        self.cache_dtype = jnp.int8 if cfg.cache_dtype == "int8" else dtype
        self.cache_ops = decoding.for_mesh(mesh, spec.kv_heads, spec.head_dim)
        self.mix_experts = experts.over_tensor(mesh)
        self.capacities = sorted(set(capacities))
        self.grouped_up_to = max(cfg.prompt_buckets) if grouped_up_to is None else grouped_up_to
        self.num_shards = sharding.num_shards(mesh)
        # shards get equal numbers of expected tokens, so some get more rollouts than others
        slack = 1.25 if self.num_shards > 1 else 1.0
        # of a wave, per shard
        self.max_rollouts = -(
            -int(max(cfg.questions * cfg.group_size, cfg.slots) * slack) // self.num_shards
        )
        # fewer slots save time only on CPU: kernels skip idle slots, and reading weights dominates
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self.sizes = decode_state.sizes(
            cfg.slots // self.num_shards, cfg.min_slots if on_cpu else 0
        )
        self.whole, self.rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        self.stop_V = np.zeros(spec.vocab_rows, bool)
        self.stop_V[list(stop_ids)] = True
        self._to_layout = jax.jit(
            functools.partial(_to_rollout_layout, spec, dtype),
            out_shardings=_rollout_shardings(self.spec, mesh),
        )

    def max_prompts(self, bucket: int) -> int:
        """Returns how many prompts of this bucket a shard holds in a wave."""
        return min(
            max(self.cfg.prompt_cache_tokens // self.num_shards // bucket, 1), self.max_rollouts
        )

    def shared_rows(self, bucket: int) -> int:
        """Returns the prompts of a shard's wave of whole groups; 0 if no groups are that long, or
        the prompt cache is too small.
        """
        rows, previous = (
            -(-self.max_rollouts // self.cfg.group_size),
            max((b for b in self.cfg.prompt_buckets if b < bucket), default=0),
        )
        return (
            rows
            if self.cfg.group_size > 1
            and previous < self.grouped_up_to
            and rows <= self.max_prompts(bucket)
            else 0
        )

    def pieces(self, bucket: int, rows: int) -> int:
        """Returns how many prompts a shard prefills one chunk of at a time."""
        return min(max(self.cfg.prefill_tokens // prefill.chunk_of(bucket), 1), rows)

    def capacity(self, sampling: SamplingParams) -> int:
        """Returns the response tokens to allocate for a call.

        Raises:
            ValueError: `max_new_tokens` exceeds every capacity.
        """
        capacity = min((c for c in self.capacities if c >= sampling.max_new_tokens), default=0)
        if not capacity:
            raise ValueError(
                f"max_new_tokens={sampling.max_new_tokens} exceeds what the sampler was built for:"
                f" {self.capacities}"
            )
        return capacity

    def shapes(self, bucket: int) -> list[tuple[int, int]]:
        """Returns (rows, group) of the prompt caches of this bucket: one for any prompts, and
        possibly one for whole groups.
        """
        shared = self.shared_rows(bucket)
        return [(self.max_prompts(bucket), 1)] + ([(shared, self.cfg.group_size)] if shared else [])

    def needed(self, sampling: SamplingParams, longest_prompt: int) -> list[Program]:
        """Returns the programs of requests with these sampling params and prompts up to this
        length, in order of first use.
        """
        last = self.bucket(longest_prompt)
        return self.needed_in({b for b in self.cfg.prompt_buckets if b <= last}, sampling)

    def bucket(self, prompt_tokens: int) -> int:
        """Returns the bucket of a prompt of this length; the largest for one that fits none."""
        return min(
            (b for b in self.cfg.prompt_buckets if b >= prompt_tokens),
            default=max(self.cfg.prompt_buckets),
        )

    def needed_in(self, buckets: Collection[int], sampling: SamplingParams) -> list[Program]:
        """Returns the programs of requests with these sampling params whose prompts fall into these
        buckets, in order of first use.
        """
        capacity = self.capacity(sampling)
        programs: list[Program] = []
        for bucket in sorted(buckets):
            for rows, group in self.shapes(bucket):
                programs += [
                    Program("prompt_cache", bucket, rows),
                    Program("prefill", bucket, rows),
                ]
                programs += [
                    Program(
                        "decode",
                        bucket,
                        rows,
                        capacity,
                        size,
                        group,
                        token_sampling.filters(sampling),
                    )
                    for size in self.sizes
                ]
                copied = self.copied(bucket, group)
                programs += [Program("slots", copied, capacity=capacity)]
                programs += [
                    Program("pack", copied, capacity=capacity, size=size)
                    for size in self.sizes[:-1]
                ]
        return list(dict.fromkeys(programs))

    def copied(self, bucket: int, group: int) -> int:
        """Returns the tokens of the prompts that slots hold copies of; 0 if they read the prompt
        cache.
        """
        return bucket if group == 1 and self.cache_ops.copies_prompts else 0

    def lower(self, p: Program) -> Any:
        """Returns the program, traced and ready to be compiled for the devices of the mesh."""
        lower = {
            "prompt_cache": self._lower_prompt_cache,
            "prefill": self._lower_prefill,
            "slots": self._lower_slots,
            "decode": self._lower_decode,
            "pack": self._lower_pack,
        }
        return lower[p.kind](p)

    def _lower_prompt_cache(self, p: Program) -> Any:
        shardings = _shardings(self.abstract_prompt_cache(p))
        return jax.jit(lambda: self._empty_prompt_cache(p), out_shardings=shardings).lower()

    def _empty_prompt_cache(self, p: Program) -> Caches:
        whole, chunk = prefill.positions(p.bucket), prefill.chunk_of(p.bucket)
        return layer_caches.empty_caches(
            self.spec,
            p.rows * self.num_shards,
            layer_caches.prompt_positions(self.spec, whole, chunk),
            self.cache_dtype,
            self.cache_ops.cache,
        )

    def _lower_prefill(self, p: Program) -> Any:
        extend = functools.partial(prefill.extend, self.spec, mix_experts=self.mix_experts)
        run = self._over_shards(extend, "wrrrrrw", "r")
        m = self.pieces(p.bucket, p.rows)
        args = [
            self._of_rows((m, prefill.chunk_of(p.bucket)), np.int32),
            *[self._of_rows((m,), np.int32)] * 3,
            self._scalar(np.int32),
        ]
        prompt_cache = self.abstract_prompt_cache(p)
        jitted = jax.jit(run, donate_argnums=1, out_shardings=_shardings(prompt_cache))
        return jitted.lower(self.abstract_weights, prompt_cache, *args)

    def _lower_slots(self, p: Program) -> Any:
        p = p._replace(size=self.sizes[0])
        run = self._over_shards(functools.partial(self._begin, p), "", "r")
        return jax.jit(run, out_shardings=_shardings(self.abstract_state(p))).lower()

    def _begin(self, p: Program) -> decode_state.DecodeState:
        positions = prefill.positions(p.bucket) if p.bucket else 0
        return decode_state.begin(
            self.spec,
            p.size,
            self.max_rollouts,
            p.capacity,
            self.cache_dtype,
            self.cache_ops,
            self.longest(p.capacity),
            positions,
            self.record_experts,
        )

    def longest(self, capacity: int) -> int:
        """Returns the cached tokens of the longest sequence: any prompt, and a response of this
        capacity, whose last token is not fed.
        """
        return max(self.cfg.prompt_buckets) + capacity - 1

    def _lower_decode(self, p: Program) -> Any:
        smaller = self.sizes[self.sizes.index(p.size) + 1 :]
        options = decode.DecodeOptions(
            chunk_rollouts=-(-self.max_rollouts // CHUNKS_PER_WAVE),
            next_slots=smaller[0] if smaller else 0,
            group=p.group,
            filtered=p.filtered,
            cache_ops=self.cache_ops,
            mix_experts=self.mix_experts,
            longest=self.longest(p.capacity),
            record_experts=self.record_experts,
        )
        run = functools.partial(decode.decode_chunk, self.spec, options=options)
        N = self.max_rollouts
        sizes = ((p.rows,), (p.rows,), (N,), (N,), (N,), (N, 2), (1,))
        queue = decode_state.Queue(
            *(self._of_rows(n, np.uint32 if len(n) > 1 else np.int32) for n in sizes)
        )
        state = self.abstract_state(p._replace(bucket=self.copied(p.bucket, p.group)))
        args = (
            self.abstract_prompt_cache(p),
            queue,
            state,
            self._scalar(bool, self.stop_V.shape),
            self._scalar(np.uint32, (2,)),
            token_sampling.abstract_scalars(),
            self._scalar(np.int32),
        )
        jitted = jax.jit(
            self._over_shards(run, "wrrrwwww", "rr"),
            donate_argnums=3,
            out_shardings=(_shardings(state), self.rows),
        )
        return jitted.lower(self.abstract_weights, *args)

    def _lower_pack(self, p: Program) -> Any:
        smaller = self.sizes[self.sizes.index(p.size) + 1]
        run = self._over_shards(functools.partial(decode_state.pack, num_slots=smaller), "r", "r")
        packed = self.abstract_state(p._replace(size=smaller)).slots
        jitted = jax.jit(run, out_shardings=_shardings(packed))
        return jitted.lower(self.abstract_state(p).slots)

    @functools.cached_property
    def abstract_weights(self) -> Any:
        """Shapes, dtypes and shardings of params in rollout layout."""
        shapes = jax.eval_shape(
            lambda: _to_rollout_layout(
                self.spec, self.dtype, transformer.init(self.spec, jax.random.key(0))
            )
        )
        shardings = _rollout_shardings(self.spec, self.mesh)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        )

    def abstract_prompt_cache(self, p: Program) -> Any:
        """Returns shapes, dtypes and shardings of a prompt cache, over all shards."""
        return self._split_over_heads(jax.eval_shape(lambda: self._empty_prompt_cache(p)))

    def abstract_state(self, p: Program) -> Any:
        """Returns shapes, dtypes and shardings of the decode state, over all shards."""
        local = jax.eval_shape(lambda: self._begin(p))
        whole = jax.tree.map(lambda x: self._of_rows(x.shape, x.dtype), local)
        spans, prompts = self._split_over_heads((whole.slots.spans, whole.slots.prompts))
        return whole._replace(slots=whole.slots._replace(spans=spans, prompts=prompts))

    def _split_over_heads(self, caches: Any) -> Any:
        """Returns caches [rows, heads, ...] with their shardings: rows over the shards, and heads
        over the tensor axis where they divide.
        """

        def placed(x: Any) -> Any:
            split = None if x.shape[1] % self.mesh.shape["tensor"] else "tensor"
            placement = PartitionSpec(sharding.BATCH_AXES, split)
            return jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(self.mesh, placement)
            )

        return jax.tree.map(placed, caches)

    def _of_rows(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Returns a global array of which every shard holds a part of this shape."""
        return jax.ShapeDtypeStruct(
            (shape[0] * self.num_shards, *shape[1:]), dtype, sharding=self.rows
        )

    def _scalar(self, dtype: Any, shape: tuple[int, ...] = ()) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.whole)

    def _over_shards(self, run: Any, args: str, out: str) -> Any:
        """Maps a function over shards. Arguments marked r are split by rows, those marked w are
        whole; the compiler handles the tensor axis.
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


def _shardings(abstract: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, abstract)


def _to_rollout_layout(spec: ModelSpec, dtype: Any, params: Any) -> Any:
    """Merges adapters, casts to the compute dtype, and unstacks the layers."""
    table = weights(replace(spec, lora=None))
    params = jax.tree.map(
        lambda w, x: x.astype(jnp.float32 if w.exact else dtype),
        table,
        lora.merge(spec, params),
        is_leaf=lambda w: isinstance(w, Weight),
    )
    return transformer.unstacked(spec, params, lambda stack, i: jax.tree.map(lambda w: w[i], stack))


def _rollout_shardings(spec: ModelSpec, mesh: Mesh) -> Any:
    stacked = sharding.param_shardings(spec, mesh, sharding.ROLLOUT)

    def of_layer(stack: Any, i: int) -> Any:
        return jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec(*s.spec[1:])), stack)

    return transformer.unstacked(spec, stacked, of_layer)
