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
class Network:
    """A model directory without its tokenizer, opened but not loaded."""

    directory: Path
    spec: ModelSpec  # with config.lora's adapters, and the vocabulary padded for the mesh
    mesh: Mesh
    dtype: Any  # of computation

    @cached_property
    def digests(self) -> identity.Digests:
        """What distinguishes the directory's files from another model's."""
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


@dataclasses.dataclass(frozen=True)
class Model(Network):
    """A model directory, opened but not loaded, with its tokenizer and chat template."""

    chat: Chat


def open_model(
    cfg: Config, reporter: Reporter, date: str | None = None, revision: str | None = None
) -> Model:
    """The model of `config.model.path`, on the mesh of `config.mesh`.

    The world's base is pretrained if it is asked for and not there yet.

    Args:
        date: shown by a chat template with the date in it (ISO); None: today's, the same on all
            processes.
        revision: the commit of a model from the hub; None: its newest.

    Raises:
        ConfigError: with a line for everything wrong with config, directory and mesh.
    """
    problems, directory = _open_directory(cfg, reporter, revision)
    spec = _read_spec(directory, problems)
    date = date or distributed.broadcast_from_main(lambda: datetime.date.today().isoformat())
    tokenizer = collect(problems, lambda: load_tokenizer(directory))
    chat = collect(problems, lambda: Chat(tokenizer, cfg.chat, date)) if tokenizer else None
    if spec and tokenizer:
        ids = tokenizer.token_ids, tokenizer.stop_ids, tokenizer.pad_id
        collect(problems, lambda: limits.check_token_ids(directory, spec.vocab, *ids))
    if problems or not spec or not chat:
        raise ConfigError(*problems)
    network = _on_mesh(cfg, directory, spec, reporter)
    for line in chat.notices:
        reporter.line(line)
    return Model(network.directory, network.spec, network.mesh, network.dtype, chat)


def open_network(
    cfg: Config,
    reporter: Reporter,
    check: Callable[[ModelSpec], list[str]] = lambda spec: [],
    longest: int | None = None,
) -> Network:
    """The model of `config.model.path` without its tokenizer, on the mesh of `config.mesh`.

    Args:
        longest: tokens of the longest sequence; None: as the config allows.
        check: finds what else is wrong with the model, a line each.

    Raises:
        ConfigError: with a line for everything wrong with config, directory and mesh.
    """
    problems, directory = _open_directory(cfg, reporter)
    spec = _read_spec(directory, problems)
    if spec:
        problems += check(spec)
    if problems or not spec:
        raise ConfigError(*problems)
    return _on_mesh(cfg, directory, spec, reporter, longest)


def find_directory(cfg: Config, revision: str | None = None) -> Path:
    """The directory of `config.model.path`, which also holds the tokenizer. The world's base is
    not pretrained for this.

    Args:
        revision: the commit of a model from the hub; None: its newest.

    Raises:
        ConfigError: it is not there (any more).
    """
    if cfg.model.path != WORLD:
        return hf_config.locate(cfg.model.path, revision)
    directory = pretrain.base_directory(cfg.world)
    if not directory.is_dir():
        raise ConfigError(
            f"{directory}: the run's base model is not there; start this in the folder where the"
            " run was started, or give its place with --config.world.cache_dir or"
            " --config.model.path"
        )
    return directory


def place(cfg: Config, spec: ModelSpec, mesh: Mesh, longest: int | None = None) -> ModelSpec:
    """The spec with config.lora's adapters, a vocabulary that the mesh splits evenly, and positions
    for the longest sequence, by default the longest that the config allows.

    Raises:
        ConfigError: with a line for every weight that the mesh splits unevenly.
    """
    padding = -spec.vocab % mesh.shape["tensor"]
    spec = dataclasses.replace(
        spec.for_length(longest or config.longest_sequence(cfg)),
        lora=lora.from_config(cfg.lora),
        padded_vocab=spec.vocab + padding if padding else 0,
    )
    problems = [
        line
        for layout in (sharding.LEARNER, sharding.ROLLOUT)
        for line in sharding.problems(spec, mesh, layout)
    ]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return spec


def compute_dtype(cfg: Config, on_cpu: bool = False) -> Any:
    """The dtype of computation: config.model.compute_dtype, or the device's usual one."""
    usual = jnp.float32 if on_cpu else jnp.bfloat16
    return {"auto": usual, "float32": jnp.float32, "bfloat16": jnp.bfloat16}[
        cfg.model.compute_dtype
    ]


def reference_dtype(cfg: Config, dtype: Any) -> str:
    """The dtype of the frozen initial model: that of params for a KL term, else of computation."""
    return cfg.model.param_dtype if cfg.loss.kl != "off" else str(jnp.dtype(dtype))


def collect(problems: list[str], make: Callable[[], Any]) -> Any:
    """What `make` returns; None where it raises a ConfigError, whose lines are added."""
    try:
        return make()
    except ConfigError as e:
        problems += e.problems
        return None


def _open_directory(
    cfg: Config, reporter: Reporter, revision: str | None = None
) -> tuple[list[str], Path]:
    """(problems of the config, the model's directory)."""
    problems = rules.problems(cfg, len(jax.devices()))
    if cfg.model.compute_dtype == "bfloat16" and jax.devices()[0].platform == "cpu":
        problems.append(
            "config.model.compute_dtype=bfloat16: on a CPU, XLA cannot multiply all arrays of"
            " bfloat16; leave it at auto, which is float32 there (config.model.param_dtype may be"
            " bfloat16)"
        )
    if not cfg.model.path:
        problems.append("config.model.path is empty: name a model directory or a hub id")
    if problems and cfg.model.path in ("", WORLD):
        raise ConfigError(*problems)
    with reporter.phase("pretraining"):
        if cfg.model.path == WORLD:
            return problems, pretrain.ensure_base(cfg.world, reporter.line)
        return problems, hf_config.locate(cfg.model.path, revision)


def _read_spec(directory: Path, problems: list[str]) -> ModelSpec | None:
    """The directory's spec, compared with its tensors; None with a line for what is wrong."""
    spec = collect(problems, lambda: hf_config.read_spec(directory))
    if spec:
        collect(problems, lambda: hf.check(directory, spec))
    return spec


def _on_mesh(
    cfg: Config,
    directory: Path,
    spec: ModelSpec,
    reporter: Reporter,
    longest: int | None = None,
) -> Network:
    longest = longest or config.longest_sequence(cfg)
    mesh = sharding.make_mesh(config.mesh_shape(cfg.mesh, len(jax.devices())))
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    spec = place(cfg, spec, mesh, longest)
    for line in (*hf_config.notices(directory), *limits.notices(spec, longest)):
        reporter.line(line)
    return Network(directory, spec, mesh, compute_dtype(cfg, on_cpu))
