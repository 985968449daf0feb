"""Opens a model: directory, spec, tokenizer and chat template, mesh, dtype of computation."""

import dataclasses
import datetime
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from p2o_jax import config
from p2o_jax.config import Config, ConfigError, rules
from p2o_jax.data.chat import Chat, load_tokenizer
from p2o_jax.models import hf, hf_config, identity, lora, sharding
from p2o_jax.models.spec import ModelSpec
from p2o_jax.runtime import distributed
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup import limits
from p2o_jax.toy_world import pretrain

WORLD = "world"  # config.model.path and config.data.path: the built-in world


@dataclasses.dataclass(frozen=True)
class Model:
    """A model directory, opened but not loaded: what it is, how it talks, and where it will run."""

    directory: Path
    spec: ModelSpec
    chat: Chat
    mesh: Mesh
    dtype: Any  # of computation

    @cached_property
    def digests(self) -> identity.Digests:
        """What tells the directory's files from another model's."""
        return identity.digests(self.directory)

    def load(self, param_dtype: str) -> Any:
        """The weights of the directory, laid out for the learner; without adapters."""
        spec = dataclasses.replace(self.spec, lora=None)
        return hf.load(
            self.directory,
            spec,
            sharding.param_shardings(spec, self.mesh, sharding.LEARNER),
            param_dtype,
        )


def open_model(
    cfg: Config, reporter: Reporter, date: str | None = None, revision: str | None = None
) -> Model:
    """The model of `config.model.path`, on the mesh of `config.mesh`; pretrains the world's base if
    that is asked for.

    `date` (ISO) is what a chat template with the date in it shows; None: today's, the same on all
    processes. `revision` is the commit of a model from the hub; None: its newest.

    Raises:
        ConfigError: with a line for everything wrong with config, directory and mesh.
    """
    num_devices = len(jax.devices())
    found = rules.problems(cfg, num_devices)
    if not cfg.model.path:
        found.append("config.model.path is empty: name a model directory or a hub id")
    if found and cfg.model.path in ("", WORLD):
        raise ConfigError(*found)
    with reporter.phase("pretraining"):
        if cfg.model.path == WORLD:
            directory = pretrain.ensure_base(cfg.world, reporter.line)
        else:
            directory = hf_config.locate(cfg.model.path, revision)
    spec = collect(found, lambda: hf_config.read_spec(directory))
    date = date or distributed.broadcast_from_main(lambda: datetime.date.today().isoformat())
    tokenizer = collect(found, lambda: load_tokenizer(directory))
    chat = collect(found, lambda: Chat(tokenizer, cfg.chat, date)) if tokenizer else None
    if spec:
        collect(found, lambda: hf.check(directory, spec))
    if spec and tokenizer:
        ids = tokenizer.token_ids, tokenizer.stop_ids, tokenizer.pad_id
        collect(found, lambda: limits.check_token_ids(directory, spec.vocab, *ids))
    if found or not spec or not chat:
        raise ConfigError(*found)
    mesh = sharding.make_mesh(config.mesh_shape(cfg.mesh, num_devices))
    padding = -spec.vocab % mesh.shape["tensor"]
    spec = dataclasses.replace(
        spec, lora=lora.from_config(cfg.lora), padded_vocab=spec.vocab + padding if padding else 0
    )
    for layout in (sharding.LEARNER, sharding.ROLLOUT):
        found += [line for line in sharding.problems(spec, mesh, layout) if line not in found]
    if found:
        raise ConfigError(*found)
    for line in chat.notices:
        reporter.line(line)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    dtype = {
        "auto": jnp.float32 if on_cpu else jnp.bfloat16,
        "float32": jnp.float32,
        "bfloat16": jnp.bfloat16,
    }[cfg.model.compute_dtype]
    return Model(directory, spec, chat, mesh, dtype)


def collect(found: list[str], make: Callable[[], Any]) -> Any:
    """What `make` returns; None where it raises a ConfigError, whose lines are added to `found`."""
    try:
        return make()
    except ConfigError as e:
        found += e.problems
        return None
