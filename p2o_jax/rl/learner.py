"""The learner: scores sequences and updates the policy, each as one jitted program over packed
rows.

The programs loop over as many micro-batches as are in use (an argument), so a run compiles one
update, and one score program for plain and one for templated rows. Gradients are summed in float32;
the loss is exact over the whole mini-batch (losses.py).
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from p2o_jax import config
from p2o_jax.models import lora, sharding, transformer
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rl import batch, distill, losses
from p2o_jax.rl.batch import Example, PackedBatch
from p2o_jax.rl.optimizer import apply_updates, in_float32, make_optimizer
from p2o_jax.rl.stats import Stats, distill_stats, gap_stats, rollout_weight_stats, update_stats
from p2o_jax.runtime import distributed
from p2o_jax.types import Rollout


class TrainState(NamedTuple):
    """What an update replaces: trained params (all, or the adapters), optimizer state, and the
    number of updates skipped as not finite.
    """

    params: Any
    opt_state: Any
    bad_updates: Any


class Learner:
    """Scores and updates on a mesh, with settings from the whole config. The first batch that is
    not finite is written to a file.
    """

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
        self.frozen: Any = {}  # what is not trained; see `init`
        whole = sharding.replicated(mesh)
        abstract = self._abstract_trained(spec)
        opt_shardings = optax.tree_map_params(
            self.optimizer,
            lambda _, s: s,
            jax.eval_shape(self.optimizer.init, abstract),
            self.param_shardings,
            transform_non_params=lambda _: whole,
        )
        self.state_shardings = TrainState(self.param_shardings, opt_shardings, whole)
        self._init = jax.jit(self._init_state, out_shardings=self.state_shardings)
        self._update = jax.jit(
            self._update_state, donate_argnums=0, out_shardings=(self.state_shardings, whole)
        )
        self._score = jax.jit(self._score_rows, out_shardings=sharding.batch_sharding(mesh, None))

    def init(self, params: Any) -> TrainState:
        """A fresh state for these params; with adapters only those are in it, and the rest is
        kept as `frozen`.
        """
        trained, self.frozen = lora.split(self.spec, params)
        return self._init(trained)

    def policy(self, state: TrainState) -> Any:
        """All params of a state's policy."""
        return lora.join(state.params, self.frozen)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of a TrainState, for restoring a checkpoint into."""
        return _abstract(
            jax.eval_shape(self._init_state, self._abstract_trained(self.spec)),
            self.state_shardings,
        )

    def unpadded_state(self) -> TrainState:
        """Shapes and dtypes of a TrainState without vocabulary padding, the same on any mesh."""
        spec = replace(self.spec, padded_vocab=0)
        return jax.eval_shape(self._init_state, self._abstract_trained(spec))

    def score_tokens(
        self, params: Any, sequences: Sequence[tuple[tuple[int, ...], np.ndarray]], row_tokens: int
    ) -> list[np.ndarray]:
        """log p of every response token at the rollout temperature, float32, for each (prompt,
        response).
        """
        limit = self.cfg.rollout.questions * self.cfg.rollout.group_size
        scored: list[np.ndarray] = []
        for first in range(0, len(sequences), limit):
            part = sequences[first : first + limit]
            packed = self._pack(part, row_tokens, limit)
            wanted = packed.rows.trained.reshape(-1, row_tokens)
            for r, a, b in packed.places:
                wanted[r, a:b] = True
            logp_MBT = self._score(params, self._put(packed.rows), jnp.int32(packed.num_micro))
            flat = distributed.to_host(logp_MBT).reshape(-1, row_tokens)
            scored += [flat[r, a:b].copy() for r, a, b in packed.places]
        return scored

    def transfers(self, params: Any, rollouts: Sequence[Rollout]) -> list[float]:
        """How likely each response is on its plain prompt, against the prompt that it was
        sampled on (distill.transfer).
        """
        on = (
            [(r.plain_ids, r.completion.token_ids) for r in rollouts],
            [(r.prompt_ids, r.completion.token_ids) for r in rollouts],
        )
        rows = config.templated_row_tokens(self.cfg)
        plain, templated = (self.score_tokens(params, sequences, rows) for sequences in on)
        return [
            distill.transfer(p, t, self.cfg.distill.transfer_scale)
            for p, t in zip(plain, templated, strict=True)
        ]

    def score(
        self, params: Any, ref_params: Any, made: Sequence[Example], first_update: int = 0
    ) -> tuple[list[Example], Stats]:
        """The examples with old and reference log-probs and distillation weights (algorithm step
        6), taken before any update.

        Examples that cannot contribute to the gradient are left as they are, and cost nothing. The
        first `first_update` examples are those of an update at these very params: its own log-probs
        are their old ones, so they are scored only for a weight.
        """
        scored = list(made)
        contributing = [i for i, e in enumerate(made) if self._contributes(e)]
        weighted = self.cfg.train.rollout_is != "none"
        used = [i for i in contributing if i >= first_update or made[i].templated or weighted]
        plain = self._score_on(
            params, made, used, "prompt_ids", config.trained_row_tokens(self.cfg)
        )
        templated_used = [i for i in used if made[i].templated]
        templated = self._score_on(
            params, made, templated_used, "sampled_on_ids", config.templated_row_tokens(self.cfg)
        )
        ref = plain
        if self.cfg.loss.kl != "off":
            ref = self._score_on(
                ref_params, made, contributing, "prompt_ids", config.trained_row_tokens(self.cfg)
            )
        rho, gap, weights, rollout_weights = [], [], [], []
        for i in set(contributing).difference(used):
            weight = np.full(len(made[i].response_ids), made[i].weight, np.float32)
            scored[i] = replace(made[i], logp_ref_R=ref.get(i, weight), weight_R=weight, fresh=True)
        for i in used:
            on_template = templated.get(i, plain[i])
            old = on_template if self.cfg.distill.mode == "importance" else plain[i]
            weight = np.ones_like(old)
            if made[i].templated:
                weight = distill.token_weights(plain[i], on_template, self.cfg.distill)
                rho.append(distill.density_ratio(plain[i], on_template))
                weights.append(weight)
            gap.append(np.abs(on_template - made[i].logp_sampler_R))
            if weighted:
                train = self.cfg.train
                rollout_weights.append(
                    distill.rollout_weights(
                        on_template, made[i].logp_sampler_R, train.rollout_is, train.rollout_is_cap
                    )
                )
                weight = weight * rollout_weights[-1]
            scored[i] = replace(
                made[i],
                logp_old_R=old,
                logp_ref_R=ref[i],
                weight_R=weight * np.float32(made[i].weight),
            )
        num_tokens = sum(len(made[i].response_ids) for i in contributing)
        stats = distill_stats(rho, weights, num_tokens, self.cfg.distill) | gap_stats(gap)
        return scored, stats | rollout_weight_stats(rollout_weights, self.cfg.train.rollout_is_cap)

    def update(self, state: TrainState, mini: Sequence[Example]) -> tuple[TrainState, Stats]:
        """The state after one optimizer update on a mini-batch of scored examples."""
        length_N = np.array([len(e.response_ids) if e.trained else 0 for e in mini], np.int64)
        scale_N = losses.aggregation_scale(
            length_N, self.cfg.loss.aggregation, self.cfg.rollout.max_new_tokens
        )
        used = [i for i, e in enumerate(mini) if self._contributes(e)]
        limit, row_tokens = config.minibatch_rollouts(self.cfg), config.trained_row_tokens(self.cfg)
        packed = self._pack(
            [(mini[i].prompt_ids, mini[i].response_ids) for i in used], row_tokens, limit
        )
        flat = PackedBatch(*(x.reshape(-1, x.shape[-1]) for x in packed.rows))
        for i, (r, a, b) in zip(used, packed.places, strict=True):
            flat.trained[r, a:b] = True
            flat.advantage[r, a:b], flat.scale[r, a:b] = mini[i].advantage, scale_N[i]
            flat.weight[r, a:b], flat.logp_ref[r, a:b] = mini[i].weight_R, mini[i].logp_ref_R
            flat.logp_old[r, a:b] = 0.0 if mini[i].fresh else mini[i].logp_old_R
            flat.fresh[r, a:b], flat.logp_sampler[r, a:b] = mini[i].fresh, mini[i].logp_sampler_R
        state, sums = self._update(
            state, self.frozen, self._put(packed.rows), jnp.int32(packed.num_micro)
        )
        stats = update_stats(
            {k: float(v) for k, v in sums.items()}, packed.num_micro * packed.rows.token[0].size
        )
        if stats["train/bad_updates"]:
            self._on_bad_update(packed, int(state.bad_updates))
        return state, stats

    def programs(self) -> list[tuple[str, jax.stages.Lowered]]:
        """The learner's programs in a policy step, lowered for the mesh's devices, which need
        not be there (p2o_jax/plan).
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
        found = [
            ("update", update),
            ("score", self._score.lower(params, rows(plain, all_sequences), count)),
        ]
        if self.cfg.gepa.enabled and templated != plain:
            found.append(
                (
                    "score templated",
                    self._score.lower(params, rows(templated, all_sequences), count),
                )
            )
        return found

    def _on_bad_update(self, packed: batch.Packed, total: int) -> None:
        """Writes the first batch that was not finite, and ends a run that has had too many of them.

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
                f"config.train.max_bad_steps={limit}: so many updates had a loss or gradient that"
                " was not finite, and were skipped; the first of their batches is in"
                f" {self.bad_batch}; config.optim.lr={self.cfg.optim.lr} may be too high"
            )

    def _contributes(self, e: Example) -> bool:
        """Whether the example has any gradient: with zero advantage, no KL and no entropy bonus
        it has none, exactly.
        """
        return e.trained and (
            e.advantage != 0 or self.cfg.loss.kl != "off" or self.cfg.loss.entropy_coef != 0
        )

    def _score_on(
        self,
        params: Any,
        made: Sequence[Example],
        which: Sequence[int],
        prompt: str,
        row_tokens: int,
    ) -> dict[int, np.ndarray]:
        scored = self.score_tokens(
            params, [(getattr(made[i], prompt), made[i].response_ids) for i in which], row_tokens
        )
        return dict(zip(which, scored, strict=True))

    def _pack(
        self, sequences: Sequence[tuple[tuple[int, ...], np.ndarray]], row_tokens: int, limit: int
    ) -> batch.Packed:
        micro_rows = self.cfg.optim.micro_rows
        return batch.pack(sequences, row_tokens, micro_rows, -(-limit // micro_rows), self.pad_id)

    def _put(self, rows: PackedBatch) -> PackedBatch:
        split = sharding.batch_sharding(self.mesh, None)
        return PackedBatch(*(distributed.put(x, split) for x in rows))

    def _abstract_trained(self, spec: ModelSpec) -> Any:
        full = jax.eval_shape(
            lambda: transformer.init(spec, jax.random.key(0), self.cfg.model.param_dtype)
        )
        return lora.split(spec, full)[0]

    def _init_state(self, params: Any) -> TrainState:
        return TrainState(params, self.optimizer.init(params), jnp.int32(0))

    def _logps(self, params: Any, row: PackedBatch) -> tuple[jax.Array, jax.Array]:
        return transformer.token_logps(
            lora.spec_of(self.spec, params),
            params,
            row.token,
            row.position,
            row.segment,
            temperature=self.cfg.rollout.temperature,
            dtype=self.dtype,
            remat=self.cfg.model.remat,
            chunk=self.cfg.model.logit_chunk,
            wanted_BT=row.trained,
            entropy_gradient=self.cfg.loss.entropy_coef != 0,
            mesh=self.mesh,
        )

    def _score_rows(self, params: Any, rows: PackedBatch, num_micro: jax.Array) -> jax.Array:
        def micro(i: jax.Array, logp_MBT: jax.Array) -> jax.Array:
            logp_BT, _ = self._logps(params, _micro_batch(rows, i))
            return lax.dynamic_update_index_in_dim(logp_MBT, logp_BT, i, 0)

        return lax.fori_loop(0, num_micro, micro, jnp.zeros(rows.token.shape, jnp.float32))

    def _loss(
        self, trained: Any, frozen: Any, row: PackedBatch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """This micro-batch's part of the loss, and sums over its trained tokens."""
        cfg = self.cfg.loss
        logp_new_BT, entropy_BT = self._logps(lora.join(trained, frozen), row)
        logp_old_BT = jnp.where(row.fresh, lax.stop_gradient(logp_new_BT), row.logp_old)
        log_ratio_BT = losses.log_ratio(logp_new_BT, logp_old_BT, row.segment, row.trained, cfg)
        token = losses.policy_loss(logp_new_BT, log_ratio_BT, row.advantage, cfg)
        policy = jnp.sum(jnp.where(row.trained, token.loss * row.weight * row.scale, 0.0))
        sums = {
            "policy_loss": policy,
            "tokens": row.trained.sum(),
            "real_tokens": (row.segment > 0).sum(),
        }
        total = policy
        if cfg.kl != "off":
            divergence = losses.kl(logp_new_BT, row.logp_ref, cfg.kl)
            sums["kl_loss"] = jnp.sum(jnp.where(row.trained, divergence * row.scale, 0.0))
            total += cfg.kl_coef * sums["kl_loss"]
        if cfg.entropy_coef != 0:
            total -= cfg.entropy_coef * jnp.sum(jnp.where(row.trained, entropy_BT * row.scale, 0.0))
        per_token = {
            "clipped": token.clipped,
            "dual_clipped": token.dual_clipped,
            "approx_kl": jnp.clip(logp_old_BT - logp_new_BT, -20.0, 20.0),
            "entropy": entropy_BT,
        }
        sums |= {name: jnp.sum(jnp.where(row.trained, x, 0.0)) for name, x in per_token.items()}
        gap_BT = jnp.where(row.fresh, jnp.abs(logp_new_BT - row.logp_sampler), 0.0)
        sums |= {"fresh_tokens": row.fresh.sum(), "gap": gap_BT.sum(), "max_gap": gap_BT.max()}
        return total, {"loss": total, **sums}

    def _update_state(
        self, state: TrainState, frozen: Any, rows: PackedBatch, num_micro: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        value_and_grad = jax.value_and_grad(self._loss, has_aux=True)

        def micro(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            (_, sums), grads = value_and_grad(state.params, frozen, _micro_batch(rows, i))
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
            return jax.tree.map(jnp.add, carry[0], grads), _added(carry[1], sums)

        zeros = jax.tree.map(
            lambda p, s: lax.with_sharding_constraint(jnp.zeros(p.shape), s),
            state.params,
            self.param_shardings,
        )
        shapes = jax.eval_shape(self._loss, state.params, frozen, _micro_batch(rows, jnp.int32(0)))[
            1
        ]
        grads, sums = lax.fori_loop(
            0,
            num_micro,
            micro,
            (zeros, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)),
        )
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = apply_updates(state.params, updates, opt_state, self.cfg.train.seed)
        change = jax.tree.map(jnp.subtract, in_float32(params), in_float32(state.params))
        norm = optax.global_norm(grads)
        good = jnp.isfinite(norm) & jnp.isfinite(sums["loss"])
        params, opt_state = jax.tree.map(
            functools.partial(jnp.where, good), (params, opt_state), (state.params, state.opt_state)
        )
        sums |= {
            "grad_norm": norm,
            "param_norm": optax.global_norm(in_float32(params)),
            "bad": ~good,
        }
        # of what is stored, after rounding
        sums["update_norm"] = jnp.where(good, optax.global_norm(change), 0.0)
        return TrainState(params, opt_state, state.bad_updates + ~good), sums


def _abstract(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def _added(total: dict[str, jax.Array], part: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Sums over both, and the larger of what is named max_*."""
    return {k: (jnp.maximum if k.startswith("max_") else jnp.add)(total[k], part[k]) for k in total}


def _micro_batch(rows: PackedBatch, i: jax.Array) -> PackedBatch:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), rows)
