"""Hugging Face checkpoints: `load` and `save` params as safetensors files, one tensor at a time."""

import os
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding

from p2o_jax.models import hf_config, hf_writer
from p2o_jax.models.hf_reader import TensorFiles, load_leaf
from p2o_jax.models.hf_tensors import INDEX_FILE, Stored, tensors
from p2o_jax.models.spec import ModelSpec, Weight, weights
from p2o_jax.runtime import files


def load(
    directory: str | Path, spec: ModelSpec, shardings: Any = None, dtype: str = "float32"
) -> dict[str, Any]:
    """Loads the params in the directory's safetensors files onto the devices that `shardings` (a
    tree like the params) names.

    Each process reads only what its devices hold. The host holds one device's part of one leaf at a
    time; on CPU devices that part is the array itself, not a copy. Without shardings everything
    goes to one device. Rows that pad the vocabulary are zero. Adapters (`spec.lora`) are not in
    these files. `dtype` is model.param_dtype.

    Raises:
        ConfigError: with a line for every file or tensor that is missing, damaged, misshapen or
            unknown.
    """
    tensor_files = TensorFiles(Path(directory))
    table = tensors(spec)
    tensor_files.check(table, spec)
    tensor_files.check_tied_head(spec)
    by_path: dict[tuple[str, ...], list[Stored]] = defaultdict(list)
    for t in table:
        by_path[t.path].append(t)
    leaves = weights(replace(spec, lora=None))
    if shardings is None:
        shardings = jax.tree.map(
            lambda _: SingleDeviceSharding(jax.local_devices()[0]), leaves, is_leaf=_is_weight
        )

    def leaf(path: Any, w: Weight, sharding: Sharding) -> jax.Array:
        stored = by_path[tuple(k.key for k in path)]
        return load_leaf(tensor_files, stored, w.shape, sharding, jnp.dtype(w.dtype(dtype)))

    return jax.tree.map_with_path(leaf, leaves, shardings, is_leaf=_is_weight)


def check(directory: str | Path, spec: ModelSpec) -> None:
    """Checks by the headers of the directory's safetensors files that they hold exactly the model's
    tensors.

    Raises:
        ConfigError: with a line for every file or tensor that is missing, damaged, misshapen or
            unknown.
    """
    TensorFiles(Path(directory)).check(tensors(spec), spec)


def save(
    directory: str | Path,
    spec: ModelSpec,
    params: dict[str, Any],
    tokenizer_dir: str | Path | None = None,
    dtype: str = "bfloat16",
    max_shard_bytes: float = 5e9,
    generation_config: dict[str, Any] | None = None,
    overwrite: bool = False,
    chat_template: str = "",
    prompts: dict[str, Any] | None = None,
) -> None:
    """Writes the params (stacked blocks) as a directory that transformers' `from_pretrained` loads.

    Everything is written to a new directory beside it, which is renamed at the end. With several
    processes, all of them call this, and process 0 writes.

    Args:
        directory: the directory to write.
        spec: the model.
        params: its params, without adapters.
        tokenizer_dir: directory whose tokenizer is copied; None: no tokenizer.
        dtype: dtype of the files.
        max_shard_bytes: limit of a file's size.
        generation_config: contents of generation_config.json; its token ids are also written to
            config.json. Default: the one beside the tokenizer.
        overwrite: whether the directory may hold something.
        chat_template: replaces the tokenizer's own.
        prompts: written as p2o_jax.json.

    Raises:
        ConfigError: the directory is not empty and `overwrite` is not set, or `tokenizer_dir` has
            no tokenizer.
    """
    target, source = (
        Path(os.path.realpath(directory)),
        None if tokenizer_dir is None else Path(tokenizer_dir),
    )
    partial = files.unused(target)  # written by process 0 only
    writes = jax.process_index() == 0
    with files.removed_on_failure(partial) if writes else nullcontext():
        if writes:
            hf_writer.check_target(target, overwrite)
            generation = hf_config.generation_config(generation_config, source)
            config = hf_config.write_config(spec, dtype, generation)
            partial.mkdir(parents=True)
            hf_config.write_beside(partial, source, generation, chat_template, prompts)
            hf_config.write_json(partial / "config.json", config)
        pieces = hf_writer.pieces(tensors(spec), jnp.dtype(dtype).itemsize, max_shard_bytes)
        for file, content in pieces.items():
            with open(partial / file, "xb") if writes else nullcontext() as out:
                hf_writer.write_piece(out, content, params, dtype)
        if writes:
            if len(pieces) > 1:
                hf_config.write_json(
                    partial / INDEX_FILE, hf_writer.index(pieces, jnp.dtype(dtype).itemsize)
                )
            hf_writer.move_into_place(partial, target, overwrite)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {target}")


def _is_weight(x: Any) -> bool:
    return isinstance(x, Weight)
