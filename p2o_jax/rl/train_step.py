"""The computations of the learner's programs: initialization, scoring, and one optimizer update.

Both loops run over the micro-batches in use, whose number is an argument. Named scopes mark the
phases in a profile.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.extend import core
from jax.sharding import Mesh

from p2o_jax import config
from p2o_jax.models import lora, transformer
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rl.batch import PackedBatch
from p2o_jax.rl.objective import objective, routers, with_max_load
from p2o_jax.rl.optimizer import apply_updates, in_float32


class TrainState(NamedTuple):
    """What an update replaces: trained params (all, or the adapters), optimizer state, and the
    count of skipped updates.
    """

    params: Any
    opt_state: Any
    bad_updates: Any


@dataclass(frozen=True, eq=False)  # hashed by identity, as jax.jit needs
class TrainStep:
    """Pure functions of params, optimizer state and packed rows, for the learner to compile.
    `dtype` is the compute dtype.
    """

    spec: ModelSpec
    mesh: Mesh
    cfg: config.Config
    dtype: Any
    optimizer: optax.GradientTransformation
    param_shardings: Any

    def init(self, params: Any) -> TrainState:
        """Returns a fresh state for these trained params."""
        return TrainState(params, self.optimizer.init(params), jnp.int32(0))

    def _logps(self, params: Any, row: PackedBatch) -> transformer.Scored:
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
            recorded_BTX=row.choice if row.choice.size else None,
        )

    @jax.named_scope("score")
    def score(self, params: Any, rows: PackedBatch, num_micro: jax.Array) -> jax.Array:
        """Returns log p of the trained tokens of all micro-batches [U, B, T], float32; 0
        elsewhere.
        """

        def micro(i: jax.Array, logp_UBT: jax.Array) -> jax.Array:
            logp_BT = self._logps(params, _micro_batch(rows, i)).logp_BT
            return lax.dynamic_update_index_in_dim(logp_UBT, logp_BT, i, 0)

        return lax.fori_loop(0, num_micro, micro, jnp.zeros(rows.token.shape, jnp.float32))

    def _loss(
        self, trained: Any, frozen: Any, row: PackedBatch, share: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns this micro-batch's part of the loss, and sums over its trained tokens.

        Args:
            trained: trained params.
            frozen: the others.
            row: the micro-batch.
            share: its share of the update, which weighs what is no sum over tokens.
        """
        scored = self._logps(lora.join(trained, frozen), row)
        loss, sums = objective(scored.logp_BT, scored.entropy_BT, row, self.cfg.loss)
        return self._routed(scored, loss, sums, share)

    def _routed(
        self, scored: transformer.Scored, loss: jax.Array, sums: dict[str, jax.Array], share: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns loss and sums with those of routers, in models with experts."""
        if not scored.routings:
            return loss, sums
        balance, more = routers(list(scored.routings.values()), share)
        loss += self.cfg.loss.router_balance_coef * balance
        return loss, {**sums, **more, "loss": loss}

    def saved_bytes(self, trained: Any, frozen: Any, row: PackedBatch) -> int:
        """Returns the bytes that the forward pass of a micro-batch keeps for the backward pass,
        besides params. It is traced only: arguments may be abstract.
        """

        def forward(trained: Any, frozen: Any, row: PackedBatch) -> Any:
            whole = jnp.float32(1)
            return jax.vjp(lambda params: self._loss(params, frozen, row, whole)[0], trained)[1]

        jaxpr = jax.make_jaxpr(forward)(trained, frozen, row).jaxpr
        kept = {v for v in jaxpr.outvars if isinstance(v, core.Var)}.difference(jaxpr.invars)
        values: list[Any] = [v.aval for v in kept]
        # the output head is among them, as it is
        params = {(x.shape, x.dtype) for x in jax.tree.leaves((trained, frozen))}
        return sum(
            math.prod(x.shape) * x.dtype.itemsize
            for x in values
            if (x.shape, x.dtype) not in params
        )

    @jax.named_scope("update")
    def update(
        self, state: TrainState, frozen: Any, rows: PackedBatch, num_micro: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Returns the state after one update on all micro-batches, and sums of its metrics.
        Gradients are accumulated in float32.
        """
        value_and_grad = jax.value_and_grad(self._loss, has_aux=True)

        def micro(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            with jax.named_scope("forward_backward"):
                row = _micro_batch(rows, i)
                (_, sums), grads = value_and_grad(state.params, frozen, row, 1.0 / num_micro)
            with jax.named_scope("accumulate"):
                grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
                return jax.tree.map(jnp.add, carry[0], grads), _added(carry[1], sums)

        zeros = jax.tree.map(
            lambda p, s: lax.with_sharding_constraint(jnp.zeros(p.shape), s),
            state.params,
            self.param_shardings,
        )
        _, shapes = jax.eval_shape(
            self._loss, state.params, frozen, _micro_batch(rows, jnp.int32(0)), jnp.float32(1)
        )
        grads, sums = lax.fori_loop(
            0,
            num_micro,
            micro,
            (zeros, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)),
        )
        return self._apply(state, grads, with_max_load(sums))

    @jax.named_scope("optimizer")
    def _apply(
        self, state: TrainState, grads: Any, sums: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Applies the optimizer, unless the loss or a gradient is not finite: then params and
        optimizer state stay as they are.
        """
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
        # of the stored params, after rounding
        sums["update_norm"] = jnp.where(good, optax.global_norm(change), 0.0)
        return TrainState(params, opt_state, state.bad_updates + ~good), sums


def _added(total: dict[str, jax.Array], part: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Adds two dicts of sums; of names max_* it takes the larger value."""
    return {k: (jnp.maximum if k.startswith("max_") else jnp.add)(total[k], part[k]) for k in total}


def _micro_batch(rows: PackedBatch, i: jax.Array) -> PackedBatch:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), rows)
