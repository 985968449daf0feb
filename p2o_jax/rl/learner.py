"""The learner scores sequences and updates the policy; each is one jitted program over packed rows.

The number of micro-batches is an argument of the programs. A run thus compiles one update program
and one score program each for plain and templated rows. Gradients are accumulated in float32, and
the loss is exact over the whole mini-batch (losses.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from p2o_jax import config
from p2o_jax.models import experts, lora, sharding, transformer
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rl import batch, distill, losses
from p2o_jax.rl.batch import Example, PackedBatch
from p2o_jax.rl.optimizer import make_optimizer
from p2o_jax.rl.stats import Stats, distill_stats, gap_stats, rollout_weight_stats, update_stats
from p2o_jax.rl.train_step import TrainState, TrainStep
from p2o_jax.runtime import allocator, distributed


class Learner:
    """Scores and updates on a mesh.

    Args:
        spec: the model.
        mesh: devices, with the axes of models.sharding.
        cfg: the whole config, resolved.
        num_updates: optimizer updates of the run, for the learning-rate schedule.
        dtype: compute dtype of the model.
        pad_id: token id of padding.
        bad_batch: file for the first batch whose loss or gradient is not finite; None: not written.
    """

    step_class: type[TrainStep] = TrainStep

    def __init__(
        self,
        spec: ModelSpec,
        mesh: Mesh,
        cfg: config.Config,
        num_updates: int,
        dtype: Any,
        pad_id: int,
        bad_batch: Path | None = None,
    ):
        self.spec, self.mesh, self.cfg, self.dtype, self.pad_id, self.bad_batch = (
            spec,
            mesh,
            cfg,
            dtype,
            pad_id,
            bad_batch,
        )
        self.optimizer = make_optimizer(cfg.optim, num_updates)
        self.param_shardings, _ = lora.split(
            spec, sharding.param_shardings(spec, mesh, sharding.LEARNER)
        )
        self.frozen: Any = {}  # weights that are not trained; set by `init`
        whole = sharding.replicated(mesh)
        abstract = self._abstract_trained(spec)
        opt_shardings = optax.tree_map_params(
            self.optimizer,
            lambda _, s: s,
            jax.eval_shape(self.optimizer.init, abstract),
            self.param_shardings,
            transform_non_params=lambda _: whole,
        )
        self._step = self.step_class(spec, mesh, cfg, dtype, self.optimizer, self.param_shardings)
        self.state_shardings = TrainState(self.param_shardings, opt_shardings, whole)
        self._init = jax.jit(self._step.init, out_shardings=self.state_shardings)
        self._update = jax.jit(
            self._step.update, donate_argnums=0, out_shardings=(self.state_shardings, whole)
        )
        self._score = jax.jit(self._step.score, out_shardings=sharding.batch_sharding(mesh, None))

    def init(self, params: Any) -> TrainState:
        """Returns a fresh state for these params. With adapters the state holds only those; the
        rest is kept as `frozen`.
        """
        trained, self.frozen = lora.split(self.spec, params)
        return self._init(trained)

    def policy(self, state: TrainState) -> Any:
        """Returns all params of a state's policy."""
        return lora.join(state.params, self.frozen)

    def abstract_state(self) -> TrainState:
        """Returns the shapes, dtypes and shardings of a TrainState, to restore a checkpoint
        into.
        """
        return _abstract(
            jax.eval_shape(self._step.init, self._abstract_trained(self.spec)),
            self.state_shardings,
        )

    def unpadded_state(self) -> TrainState:
        """Returns the shapes and dtypes of a TrainState without vocabulary padding, the same on any
        mesh.
        """
        spec = replace(self.spec, padded_vocab=0)
        return jax.eval_shape(self._step.init, self._abstract_trained(spec))

    def score_tokens(
        self,
        params: Any,
        sequences: Sequence[tuple[tuple[int, ...], np.ndarray]],
        row_tokens: int,
        choices: Sequence[np.ndarray] = (),
    ) -> list[np.ndarray]:
        """Returns log p of every response token at the rollout temperature, float32, for each
        (prompt, response). `choices`: the experts to use for each, see `Packed.replay`.
        """
        limit = self.cfg.rollout.questions * self.cfg.rollout.group_size
        scored: list[np.ndarray] = []
        for first in range(0, len(sequences), limit):
            part = sequences[first : first + limit]
            packed = self._pack(part, row_tokens, limit)
            trained = packed.flat.trained
            for r, a, b in packed.places:
                trained[r, a:b] = True
            if choices:
                packed.replay(choices[first : first + limit])
            logp_UBT = self._score(params, self._put(packed.rows), jnp.int32(packed.num_micro))
            flat = distributed.to_host(logp_UBT).reshape(-1, row_tokens)
            scored += [flat[r, a:b].copy() for r, a, b in packed.places]
        return scored

    def score(
        self, params: Any, ref_params: Any, examples: Sequence[Example], first_update: int = 0
    ) -> tuple[list[Example], Stats]:
        """Returns the examples with old and reference log-probs and distillation weights, and
        metrics (algorithm step 6).

        Call it before the step's first update. Examples that cannot contribute to the gradient are
        returned unchanged and cost nothing. The first `first_update` examples are those of an
        update that starts from `params`: its own log-probs are their old ones, so they are scored
        only if a weight depends on it.
        """
        # what sampling has freed: the updates need it
        allocator.give_back(self.mesh.devices.flat[0].platform)
        scored = list(examples)
        contributing = [i for i, e in enumerate(examples) if self._contributes(e)]
        needs_importance = self.cfg.train.rollout_is != "none"
        used = [
            i
            for i in contributing
            if i >= first_update or examples[i].templated or needs_importance
        ]
        plain, templated, ref = self._score_prompts(
            params, ref_params, examples, used, contributing
        )
        for i in set(contributing).difference(used):
            weight_R = np.full(
                len(examples[i].response_ids), examples[i].response_weight, np.float32
            )
            logp_ref_R = ref.get(i, np.zeros_like(weight_R))  # read only with a KL term
            scored[i] = replace(examples[i], logp_ref_R=logp_ref_R, weight_R=weight_R, fresh=True)
        rho, raised, gap, distill_weights, importance_weights = [], [], [], [], []
        for i in used:
            on_template = templated.get(i, plain[i])
            old = on_template if self.cfg.distill.mode == "importance" else plain[i]
            weight_R = np.ones_like(old)
            if examples[i].templated:
                weight_R = distill.distill_weights(plain[i], on_template, self.cfg.distill)
                rho.append(distill.density_ratio(plain[i], on_template))
                distill_weights.append(weight_R)
                raised.append(examples[i].advantage > 0)
            gap.append(np.abs(on_template - examples[i].logp_sampler_R))
            if needs_importance:
                importance_weights.append(
                    distill.importance_weights(
                        on_template,
                        examples[i].logp_sampler_R,
                        self.cfg.train.rollout_is,
                        self.cfg.train.rollout_is_cap,
                    )
                )
                weight_R = weight_R * importance_weights[-1]
            weight_R = weight_R * np.float32(examples[i].response_weight)
            scored[i] = replace(examples[i], logp_old_R=old, logp_ref_R=ref[i], weight_R=weight_R)
        num_tokens = sum(len(examples[i].response_ids) for i in contributing)
        stats = distill_stats(rho, distill_weights, raised, num_tokens, self.cfg.distill)
        cap = self.cfg.train.rollout_is_cap
        return scored, stats | gap_stats(gap) | rollout_weight_stats(importance_weights, cap)

    def _score_prompts(
        self,
        params: Any,
        ref_params: Any,
        examples: Sequence[Example],
        used: Sequence[int],
        contributing: Sequence[int],
    ) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], dict[int, np.ndarray]]:
        """Returns log-probs by example index: on the plain prompt and on the template for `used`,
        and under the reference for `contributing` (with a KL term; else those on the plain prompt).
        """
        trained, sampled = (
            config.trained_row_tokens(self.cfg),
            config.templated_row_tokens(self.cfg),
        )
        plain = self._score_on(params, examples, used, "trained_on_ids", trained)
        on_template = [i for i in used if examples[i].templated]
        templated = self._score_on(params, examples, on_template, "sampled_on_ids", sampled)
        ref = plain
        if self.cfg.loss.kl != "off":
            ref = self._score_on(
                ref_params, examples, contributing, "trained_on_ids", trained, replay=False
            )
        return plain, templated, ref

    def update(self, state: TrainState, mini: Sequence[Example]) -> tuple[TrainState, Stats]:
        """Returns the state after one optimizer update on a mini-batch of scored examples, and
        metrics.
        """
        length_N = np.array([len(e.response_ids) if e.trained else 0 for e in mini], np.int64)
        scale_N = losses.aggregation_scale(
            length_N, self.cfg.loss.aggregation, self.cfg.rollout.max_new_tokens
        )
        used = [i for i, e in enumerate(mini) if self._contributes(e)]
        limit, row_tokens = config.minibatch_rollouts(self.cfg), config.trained_row_tokens(self.cfg)
        packed = self._pack(
            [(mini[i].trained_on_ids, mini[i].response_ids) for i in used], row_tokens, limit
        )
        flat = packed.flat
        packed.replay([_replayed(mini[i], "trained_on_ids") for i in used])
        for i, (r, a, b) in zip(used, packed.places, strict=True):
            flat.trained[r, a:b] = True
            flat.advantage[r, a:b], flat.scale[r, a:b] = mini[i].advantage, scale_N[i]
            flat.weight[r, a:b], flat.logp_ref[r, a:b] = mini[i].weight_R, mini[i].logp_ref_R
            flat.logp_old[r, a:b] = 0.0 if mini[i].fresh else mini[i].logp_old_R
            flat.fresh[r, a:b], flat.logp_sampler[r, a:b] = mini[i].fresh, mini[i].logp_sampler_R
            flat.taught[r, a:b] = mini[i].taught
        state, sums = self._update(
            state, self.frozen, self._put(packed.rows), jnp.int32(packed.num_micro)
        )
        stats = update_stats(
            {k: float(v) for k, v in sums.items()}, packed.num_micro * packed.rows.token[0].size
        )
        if stats["train/bad_updates"]:
            self._on_bad_update(packed, int(state.bad_updates))
        return state, stats

    def saved_bytes(self, remat: transformer.Remat) -> int:
        """Returns the bytes per device that an update with this `model.remat` keeps between the
        forward and the backward pass of a micro-batch, besides params.
        """
        params = sharding.abstract_params(
            self.spec, self.mesh, sharding.LEARNER, self.cfg.model.param_dtype
        )
        rows = self._pack([], config.trained_row_tokens(self.cfg), 1).rows
        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
        cfg = replace(self.cfg, model=replace(self.cfg.model, remat=remat))
        saved = replace(self._step, cfg=cfg).saved_bytes(*lora.split(self.spec, params), row)
        return saved // sharding.num_shards(self.mesh)

    def programs(self) -> list[tuple[str, jax.stages.Lowered]]:
        """Returns the learner's programs, lowered for the mesh's devices, which need not exist
        (p2o_jax/plan).
        """
        params = sharding.abstract_params(
            self.spec, self.mesh, sharding.LEARNER, self.cfg.model.param_dtype
        )
        plain, templated = (
            config.trained_row_tokens(self.cfg),
            config.templated_row_tokens(self.cfg),
        )
        group, count = self.cfg.rollout.group_size, jax.ShapeDtypeStruct((), jnp.int32)

        def rows(row_tokens: int, sequences: int) -> PackedBatch:
            one = self._pack([], row_tokens, 1).rows
            num_micro = -(-sequences // self.cfg.optim.micro_rows)
            many = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((num_micro, *x.shape[1:]), x.dtype), one
            )
            return _abstract(
                many, jax.tree.map(lambda _: sharding.batch_sharding(self.mesh, None), one)
            )

        mini, all_sequences = (
            rows(plain, config.minibatch_rollouts(self.cfg)),
            self.cfg.rollout.questions * group,
        )
        update = self._update.lower(
            self.abstract_state(), lora.split(self.spec, params)[1], mini, count
        )
        lowered = [
            ("update", update),
            ("score", self._score.lower(params, rows(plain, all_sequences), count)),
        ]
        if self.cfg.gepa.enabled and templated != plain:
            lowered.append(
                (
                    "score templated",
                    self._score.lower(params, rows(templated, all_sequences), count),
                )
            )
        return lowered

    def _on_bad_update(self, packed: batch.Packed, total: int) -> None:
        """Writes the first batch that was not finite to `bad_batch`, and ends a run with too many
        of them.

        Raises:
            ConfigError: this was bad update number `train.max_bad_steps`.
        """
        if self.bad_batch and distributed.is_main_process() and not self.bad_batch.exists():
            np.savez_compressed(
                self.bad_batch,
                **{k: x[: packed.num_micro] for k, x in packed.rows._asdict().items()},
            )
        limit = self.cfg.train.max_bad_steps
        if limit and total >= limit:
            raise config.ConfigError(
                f"config.train.max_bad_steps={limit}: this many updates had a loss or gradient that"
                " was not finite, and were skipped; the first of these batches is in"
                f" {self.bad_batch}; config.optim.lr={self.cfg.optim.lr} may be too high"
            )

    def _contributes(self, e: Example) -> bool:
        """Whether the example has a gradient. With zero advantage and no other term of the loss it
        is exactly zero.
        """
        loss = self.cfg.loss
        return e.trained and (
            e.advantage != 0
            or loss.kl != "off"
            or loss.entropy_coef != 0
            or (loss.self_distill_coef != 0 and e.taught)
        )

    def _score_on(
        self,
        params: Any,
        examples: Sequence[Example],
        which: Sequence[int],
        prompt: str,
        row_tokens: int,
        replay: bool = True,
    ) -> dict[int, np.ndarray]:
        scored = self.score_tokens(
            params,
            [(getattr(examples[i], prompt), examples[i].response_ids) for i in which],
            row_tokens,
            [_replayed(examples[i], prompt) for i in which] if replay else (),
        )
        return dict(zip(which, scored, strict=True))

    def _pack(
        self, sequences: Sequence[tuple[tuple[int, ...], np.ndarray]], row_tokens: int, limit: int
    ) -> batch.Packed:
        micro_rows = self.cfg.optim.micro_rows
        return batch.pack(
            sequences,
            row_tokens,
            micro_rows,
            -(-limit // micro_rows),
            self.pad_id,
            experts.choices_of_token(self.spec, self.cfg.train.router_replay),
        )

    def _put(self, rows: PackedBatch) -> PackedBatch:
        split = sharding.batch_sharding(self.mesh, None)
        return PackedBatch(*(distributed.put(x, split) for x in rows))

    def _abstract_trained(self, spec: ModelSpec) -> Any:
        full = jax.eval_shape(
            lambda: transformer.init(spec, jax.random.key(0), self.cfg.model.param_dtype)
        )
        return lora.split(spec, full)[0]


def _replayed(example: Example, prompt: str) -> np.ndarray:
    """Returns the sampler's choices of experts if it saw this prompt of the example; else none."""
    saw = getattr(example, prompt) == example.sampled_on_ids
    return example.choice_RX if saw else example.choice_RX[:0]


def _abstract(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
