"""The learner of supervised training: negative log-likelihood of responses, on packed rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from p2o_jax import config
from p2o_jax.models import lora
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rl.batch import PackedBatch
from p2o_jax.rl.learner import Learner
from p2o_jax.rl.stats import Stats, router_stats
from p2o_jax.rl.train_step import TrainState, TrainStep


class SftExample(NamedTuple):
    """A prompt and the response to it, whose tokens are trained on."""

    prompt_ids: tuple[int, ...]
    response_ids: np.ndarray


@dataclass(frozen=True, eq=False)  # hashed by identity, as jax.jit needs
class SftStep(TrainStep):
    """A TrainStep whose loss is the negative log-likelihood."""

    def _loss(
        self, trained: Any, frozen: Any, row: PackedBatch, share: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns this micro-batch's part of the loss: `row.scale` is 1 over the trained tokens of
        the whole batch. For the arguments see `TrainStep`.
        """
        scored = self._logps(lora.join(trained, frozen), row)
        loss = jnp.sum(jnp.where(row.trained, -scored.logp_BT * row.scale, 0.0))
        sums = {"tokens": row.trained.sum(), "real_tokens": (row.segment > 0).sum()}
        return self._routed(scored, loss, {"loss": loss, **sums}, share)


class SftLearner(Learner):
    """Updates on and scores given responses, at temperature 1. Arguments: see `Learner`."""

    step_class = SftStep

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
        rollout = replace(cfg.rollout, temperature=1.0, questions=cfg.sft.examples, group_size=1)
        train = replace(cfg.train, router_replay=False)
        own = replace(cfg, rollout=rollout, train=train, loss=replace(cfg.loss, entropy_coef=0.0))
        super().__init__(spec, mesh, own, num_updates, dtype, pad_id, bad_batch)

    def update(  # type: ignore[override]  # other examples
        self, state: TrainState, mini: Sequence[SftExample]
    ) -> tuple[TrainState, Stats]:
        """Returns the state after one optimizer update on the examples, and metrics.

        The loss is the mean over all response tokens of the examples, exactly: it is divided once,
        however they are packed, micro-batched and sharded.
        """
        row_tokens = config.trained_row_tokens(self.cfg)
        packed = self._pack(mini, row_tokens, self.cfg.sft.examples)
        flat = packed.flat
        scale = np.float32(1 / sum(len(e.response_ids) for e in mini))
        for r, a, b in packed.places:
            flat.trained[r, a:b], flat.scale[r, a:b] = True, scale
        rows = self._put(packed.rows)
        state, sums = self._update(state, self.frozen, rows, jnp.int32(packed.num_micro))
        values = {name: float(value) for name, value in sums.items()}
        names = ("loss", "grad_norm", "update_norm", "param_norm")
        computed = packed.num_micro * packed.rows.token[0].size
        stats = {
            **{f"train/{name}": values[name] for name in names},
            "train/bad_updates": values["bad"],
            "train/trained_tokens": values["tokens"],
            "perf/frac_row_tokens_real": values["real_tokens"] / computed,
            **router_stats(values),
        }
        if stats["train/bad_updates"]:
            self._on_bad_update(packed, int(state.bad_updates))
        return state, stats

    def nll(self, params: Any, examples: Sequence[SftExample]) -> float:
        """Returns the mean negative log-likelihood over all response tokens of the examples."""
        rows = config.trained_row_tokens(self.cfg)
        logps = self.score_tokens(params, examples, rows)
        return -float(np.mean(np.concatenate(logps), dtype=np.float64))
