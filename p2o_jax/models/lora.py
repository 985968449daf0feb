"""Low-rank adapters: which weights are trained, merging adapters into projections, and adapter
files for `peft`.

With `spec.lora` set, a layer's params hold NAME_lora_a and NAME_lora_b beside NAME. Training
replaces only those. The frozen base also serves as the reference policy, without a second copy.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from p2o_jax import config
from p2o_jax.models.families import FAMILIES
from p2o_jax.models.spec import LoraSpec, ModelSpec, adapted, num_inputs, weights

Params = dict[str, Any]


def from_config(cfg: config.LoraConfig) -> LoraSpec | None:
    """Returns the adapters that the config asks for, if any."""
    return LoraSpec(cfg.rank, cfg.alpha, cfg.targets) if cfg.rank else None


def is_adapter(name: str) -> bool:
    """Whether a layer's weight of this name belongs to an adapter."""
    return name.endswith(("_lora_a", "_lora_b"))


def spec_of(spec: ModelSpec, params: Params) -> ModelSpec:
    """Returns the spec that describes these params: without `lora` if they hold no adapters (the
    frozen base).
    """
    first = params[spec.stacks[0].key]
    return spec if any(is_adapter(name) for name in first) else replace(spec, lora=None)


def split(spec: ModelSpec, params: Params) -> tuple[Params, Params]:
    """Returns (trained, frozen) params: with adapters only those are trained, otherwise all."""
    if spec.lora is None:
        return params, {}
    trained, frozen = {}, dict(params)
    for key in _keys(spec):
        trained[key] = {name: w for name, w in params[key].items() if is_adapter(name)}
        frozen[key] = {name: w for name, w in params[key].items() if not is_adapter(name)}
    return trained, frozen


def join(trained: Params, frozen: Params) -> Params:
    """Inverts `split`."""
    if not frozen:
        return trained
    return {**frozen, **{key: {**frozen[key], **adapters} for key, adapters in trained.items()}}


def add(spec: ModelSpec, base: Params, key: jax.Array, shardings: Any) -> Params:
    """Returns the base's params with new adapters: A random, B zero, so the model still equals the
    base.
    """
    if spec.lora is None:
        return base
    table: Any = weights(spec)  # by stack and name
    names = [(stack, name) for stack in _keys(spec) for name in sorted(table[stack])]
    fresh: Params = {stack: {} for stack in _keys(spec)}
    for i, (stack, name) in enumerate(names):
        w = table[stack][name]
        if is_adapter(name):
            value = (
                jnp.zeros(w.shape)
                if w.init == "zeros"
                else jax.random.normal(jax.random.fold_in(key, i), w.shape) * w.scale
            )
            fresh[stack][name] = jax.device_put(
                value.astype(w.dtype(base["embed"].dtype.name)), shardings[stack][name]
            )
    return join(fresh, base)


def merge(spec: ModelSpec, params: Params, dtype: str | None = None) -> Params:
    """Returns params with each adapter added to its projection in float32. Params without adapters
    are returned unchanged.

    `dtype` is the dtype of projections that have an adapter; None: that of the base.
    """
    spec = spec_of(spec, params)
    if spec.lora is None:
        return params
    lora = spec.lora
    return {**params, **{key: with_adapters(lora, params[key], dtype) for key in _keys(spec)}}


def with_adapters(lora: LoraSpec, blocks: Params, dtype: str | None = None) -> Params:
    """Returns the weights of a layer, or of a stack of layers, with their adapters added in
    float32.

    Args:
        lora: the adapters.
        blocks: weights by name, adapters among them.
        dtype: dtype of the weights that have an adapter; None: theirs.
    """
    merged = {name: w for name, w in blocks.items() if not is_adapter(name)}
    for name, w in merged.items():
        if f"{name}_lora_a" in blocks:
            a, b = (blocks[f"{name}_lora_{part}"].astype(jnp.float32) for part in "ab")
            each = a.shape[: -1 - num_inputs(name)]  # layers and experts have an adapter each
            change = a.reshape(*each, -1, lora.rank) @ b.reshape(*each, lora.rank, -1)
            change = change.reshape(w.shape) * (lora.alpha / lora.rank)
            merged[name] = (w.astype(jnp.float32) + change).astype(dtype or w.dtype)
    return merged


def _keys(spec: ModelSpec) -> list[str]:
    """Returns the keys of the stacks of layers in the params."""
    return [stack.key for stack in spec.stacks]


def peft_names(spec: ModelSpec) -> dict[str, str]:
    """Returns the module in transformers of each projection that has an adapter.

    Raises:
        ConfigError: the family keeps several of our projections in one module, or has none for
            experts or a Gated DeltaNet.
    """
    assert spec.lora is not None
    own = {name for layer in spec.pattern for name in adapted(spec.lora, layer)}
    if own != set(spec.lora.targets):
        raise config.ConfigError(
            f"--adapter=peft: adapters of experts and of Gated DeltaNet in {spec.family} have no"
            " modules in peft; export the merged weights, without --adapter"
        )
    tensors = FAMILIES[spec.family].block_tensors
    modules = {name: tensors[name][0].removesuffix(".weight") for name in spec.lora.targets}
    fused = [name for name in modules if not modules[name].endswith(f".{name}_proj")]
    if fused:
        raise config.ConfigError(
            f"--adapter=peft: {spec.family} has one projection for {', '.join(fused)} and others;"
            " export the merged weights, without --adapter"
        )
    return modules


def save_peft(directory: str | Path, spec: ModelSpec, trained: Params, base_path: str) -> None:
    """Writes the adapters as a directory that `peft` loads onto the base model at `base_path`.

    Raises:
        ConfigError: see `peft_names`.
    """
    assert spec.lora is not None
    target, modules = Path(directory), peft_names(spec)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for stack, name in itertools.product(spec.stacks, spec.lora.targets):
        blocks = trained[stack.key]
        a, b = (np.asarray(blocks[f"{name}_lora_{part}"], np.float32) for part in "ab")
        for i, layer in enumerate(stack.layers):
            prefix = f"base_model.model.model.layers.{layer}.{modules[name]}"
            tensors[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(
                a[i].reshape(-1, spec.lora.rank).T
            )
            tensors[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(
                b[i].reshape(spec.lora.rank, -1).T
            )
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_path,
        "r": spec.lora.rank,
        "lora_alpha": spec.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [f"{n}_proj" for n in spec.lora.targets],
    }
    (target / "adapter_config.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
