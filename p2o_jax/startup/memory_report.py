"""What a run holds in each chip's memory, by group, as it is reported at the start.

What is kept is counted from shapes and shardings. Activations are estimated; only `p2o_jax.plan`
has them from the compiler. A CPU's memory is the machine's, so there the process itself counts too,
and the copy of the state from which a checkpoint is written.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from p2o_jax import config
from p2o_jax.models import sharding
from p2o_jax.models.attention import packed
from p2o_jax.models.device_memory import bytes_per_device
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rl.learner import Learner
from p2o_jax.rollout import memory
from p2o_jax.rollout.engine import Engine
from p2o_jax.runtime import allocator
from p2o_jax.startup.model import reference_dtype

# activations [.., D] that a layer keeps for the backward pass, about, by model.remat
SAVED = {
    "full": 1,
    "dots": 9,
    "none": 18,
}
# Bytes of a process on a CPU, about, with models of 3 layers and of 30: what a run's compiled
# programs add, and the least that there is with them, libraries and the compiler's own included.
COMPILED = int(0.3 * 2**30)
RUNTIME = int(0.9 * 2**30)


class Footprint(NamedTuple):
    """Bytes on a chip."""

    params: int  # the learner's, frozen ones included
    optimizer: int
    reference: (
        int  # the frozen initial policy, where a KL term asks for it and nothing else holds it
    )
    sampling_params: int  # laid out for sampling: the policy, and the reference where it reflects
    kv_cache: int
    sampling_activations: int
    gradients: int
    update_activations: int
    checkpoint: int  # the copy that is written
    process: int  # without arrays
    limit: int  # of the device

    @property
    def held(self) -> int:
        """What is held all the time."""
        return self.params + self.optimizer + self.reference + self.process

    @property
    def sampling(self) -> int:
        """What is held while sampling."""
        return self.held + self.sampling_params + self.kv_cache + self.sampling_activations

    @property
    def update(self) -> int:
        """What is held during an update."""
        return self.held + self.gradients + self.update_activations

    @property
    def saving(self) -> int:
        """What is held while a checkpoint is written."""
        return self.held + self.checkpoint

    def table(self) -> list[str]:
        """A line for each group."""
        rows = [
            ("params, learner", self.params, ""),
            ("optimizer", self.optimizer, ""),
            ("reference", self.reference, ""),
            ("params, laid out for sampling", self.sampling_params, ""),
            ("KV cache", self.kv_cache, ""),
            ("activations, sampling", self.sampling_activations, "estimate"),
            ("gradients", self.gradients, ""),
            ("activations, update", self.update_activations, "estimate"),
            ("checkpoint, a copy", self.checkpoint, ""),
            ("process and programs", self.process, "estimate"),
            ("while sampling", self.sampling, f"of {_size(self.limit)}"),
            ("while updating", self.update, f"of {_size(self.limit)}"),
            ("while saving", self.saving, f"of {_size(self.limit)}"),
        ]
        return ["bytes per chip"] + [
            f"  {name:<30}{_size(count):>12}  {note}".rstrip() for name, count, note in rows
        ]


def measure(cfg: config.Config, learner: Learner, engine: Engine, reference: int) -> Footprint:
    """The footprint of a run. `reference`: bytes per chip of the frozen initial model, where it
    is held; with adapters a part of params.
    """
    state, plan = learner.abstract_state(), memory.plan(engine)
    params = bytes_per_device(state.params)
    adapted = learner.spec.lora is not None
    gradients, activations = _update(cfg, learner, _in_float32(state.params))
    return Footprint(
        params=params + reference * adapted,
        optimizer=bytes_per_device(state.opt_state),
        reference=reference * (not adapted),
        sampling_params=plan.weights,
        kv_cache=plan.prompt_cache + plan.slots,
        sampling_activations=plan.outputs + plan.temporaries,
        gradients=gradients,
        update_activations=activations,
        checkpoint=bytes_per_device(state) if _on_cpu(learner) else 0,
        process=_process_bytes(learner.mesh) if _on_cpu(learner) else 0,
        limit=memory.device_bytes(engine.mesh),
    )


def held_bytes(cfg: config.Config, spec: ModelSpec, mesh: Mesh, learner: Learner) -> int:
    """Bytes per device that training holds while it samples.

    These are the train state, and the whole initial model where that is needed besides.
    """
    reference = reference_bytes(cfg, spec, mesh, learner.dtype)
    return bytes_per_device(learner.abstract_state()) + reference


def reference_bytes(cfg: config.Config, spec: ModelSpec, mesh: Mesh, dtype: Any) -> int:
    """Bytes per device of the frozen initial model in the learner's layout; 0 if it is not needed.

    A KL term needs it, reflection by it, and adapters, which are trained on it.

    Args:
        dtype: of computation.
    """
    reflects = config.reflector(cfg) == "reference"
    if spec.lora is None and cfg.loss.kl == "off" and not reflects:
        return 0
    held = cfg.model.param_dtype if spec.lora else reference_dtype(cfg, dtype)
    spec = dataclasses.replace(spec, lora=None)
    return bytes_per_device(sharding.abstract_params(spec, mesh, sharding.LEARNER, held))


def _in_float32(abstract_params: Any) -> int:
    return sum(
        bytes_per_device(x) // x.dtype.itemsize * 4 for x in jax.tree.leaves(abstract_params)
    )


def _on_cpu(learner: Learner) -> bool:
    return learner.mesh.devices.flat[0].platform == "cpu"


def _process_bytes(mesh: Mesh) -> int:
    """A device's part of this process: what it holds now, before the run has arrays, and what
    compiling will add.
    """
    allocator.give_back("cpu")
    held = max(allocator.held_bytes() + COMPILED, RUNTIME)
    return held // len(mesh.local_devices)


def _update(cfg: config.Config, learner: Learner, gradients: int) -> tuple[int, int]:
    """(gradients, activations and other temporaries) of an update; `gradients`: a copy of them, in
    float32.

    Compiled for a CPU, a micro-batch's gradients exist besides their sum. The optimizer, too, holds
    three copies: gradients, clipped gradients, and new params, of all weights at the same time.
    """
    if not _on_cpu(learner):
        return gradients, _update_activations(cfg, learner)
    layer, logits = _layer_and_logits(cfg, learner)
    saved, everything = (learner.saved_bytes(remat) for remat in (cfg.model.remat, "none"))
    recomputed = (everything - saved) // learner.spec.layers
    # logits with their exponentials and their gradients
    at_work = max(layer, recomputed, _attention_bytes(cfg, learner), 3 * logits)
    return 2 * gradients, max(saved + at_work, gradients)


def _attention_bytes(cfg: config.Config, learner: Learner) -> int:
    """Bytes of attention over long rows, on a CPU: scores of a chunk of queries, with their
    exponentials and their gradients, and gradients of all queries, keys and values.
    """
    spec, row = learner.spec, config.trained_row_tokens(cfg)
    if row <= packed.DENSE_UP_TO:
        return 0
    channels = 3 * spec.heads * packed.QUERY_CHUNK
    channels += (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    return _tokens(cfg, learner) * channels * 4


def _update_activations(cfg: config.Config, learner: Learner) -> int:
    """What the layers keep, one layer at work with its gradients, and the logits of a chunk with
    theirs.
    """
    value = jnp.dtype(learner.dtype).itemsize
    kept = SAVED[cfg.model.remat] * learner.spec.layers * _tokens(cfg, learner) * value
    layer, logits = _layer_and_logits(cfg, learner)
    return kept * learner.spec.width + layer + 2 * logits


def _layer_and_logits(cfg: config.Config, learner: Learner) -> tuple[int, int]:
    """Bytes of one layer at work with its gradients, and of the logits of a chunk, in float32."""
    spec, tensor = learner.spec, learner.mesh.shape["tensor"]
    tokens, value, gradient = _tokens(cfg, learner), jnp.dtype(learner.dtype).itemsize, 4
    layer = tokens * (
        4 * spec.width
        + (3 * spec.mlp_channels + (spec.heads + 2 * spec.kv_heads) * spec.head_dim) // tensor
    )
    logits = min(cfg.model.logit_chunk, tokens) * spec.vocab_rows // tensor
    return layer * (value + gradient), logits * gradient


def _tokens(cfg: config.Config, learner: Learner) -> int:
    """Tokens of a micro-batch on a device."""
    return (
        cfg.optim.micro_rows * config.trained_row_tokens(cfg) // sharding.num_shards(learner.mesh)
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.2f} MiB"
