"""Exports the policy of a run as a Hugging Face directory, or its adapters for `peft`."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from p2o_jax.config import Config, ConfigError, loading
from p2o_jax.data.chat import load_tokenizer
from p2o_jax.models import hf, hf_config, hf_writer, identity, lora, sharding
from p2o_jax.models.spec import ModelSpec
from p2o_jax.offline import settings
from p2o_jax.runtime import distributed, files
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup import run_directory
from p2o_jax.startup.model import find_directory
from p2o_jax.tracking import checkpoint, checkpoint_reader
from p2o_jax.tracking.best import read_best


class ExportOptions(NamedTuple):
    """Which policy of which run is exported, where to and as what."""

    workdir: Path
    out: Path
    step: str = ""  # a policy step, or `best`; empty: the newest checkpoint
    dtype: str = "bfloat16"  # or float32
    adapter: str = ""  # `peft`: the adapters alone
    overrides: settings.Overrides = ()


class Policy(NamedTuple):
    """The policy of a checkpoint: of its params those that were trained."""

    directory: Path  # of the run's initial model
    spec: ModelSpec
    step: int
    abstract: Any  # shapes of all params
    trained: Any


def export(options: ExportOptions) -> None:
    """Exports a policy.

    Raises:
        ConfigError: anything wrong with options, run, model or target.
    """
    workdir, out = options.workdir, options.out
    _check(out)
    cfg = loading.read_config(workdir, options.overrides)
    policy = read_policy(cfg, options)
    tokenizer = load_tokenizer(policy.directory)
    beside: dict[str, Any] = {
        "tokenizer_dir": policy.directory,
        "generation_config": hf_config.token_ids(
            policy.directory, tokenizer.stop_ids, tokenizer.pad_id
        ),
        "chat_template": cfg.chat.template,
        "prompts": prompt_settings(cfg),
    }
    try:
        if options.adapter:
            target = Path(os.path.realpath(out))
            partial = files.unused(target)
            with files.removed_on_failure(partial):
                lora.save_peft(partial, policy.spec, policy.trained, str(policy.directory))
                hf_config.write_beside(partial, **beside)
                hf_writer.move_into_place(partial, target, overwrite=False)
        else:
            params = _merged(cfg, policy, options.dtype)
            hf.save(out, policy.spec, params, dtype=options.dtype, **beside)
    except OSError as e:
        raise ConfigError(f"--out={out}: {e.strerror or e}") from e
    reporter = Reporter(enabled=distributed.is_main_process())
    for line in files.leftovers(out):
        reporter.line(line)
    reporter.line(
        f"{out}: the policy of {workdir} after {policy.step} steps,"
        f" {'adapters' if options.adapter else options.dtype}"
    )
    reporter.line(
        f"{out / hf_config.PROMPTS}: what the run's prompts had besides the chat template"
    )


def read_policy(cfg: Config, options: ExportOptions) -> Policy:
    """The policy of one of the run's checkpoints.

    Raises:
        ConfigError: no such checkpoint, or the initial model is not there, or another one.
    """
    workdir = options.workdir
    where = checkpoint.directory(workdir, cfg.checkpoint)
    best = read_best(where)
    step, tick = _pick(
        workdir, checkpoint_reader.policies(where), options.step, best.step if best else None
    )
    named = run_directory.read(workdir)
    directory = find_directory(cfg, named.revision(cfg.model.path))
    if changed := named.changed_model(directory, identity.digests(directory)):
        raise ConfigError(*changed)
    spec = dataclasses.replace(hf_config.read_spec(directory), lora=lora.from_config(cfg.lora))
    if options.adapter and not spec.lora:
        raise ConfigError(
            f"--adapter={options.adapter}: {workdir} trained all weights (config.lora.rank=0),"
            " there are no adapters"
        )
    if options.adapter:
        lora.peft_names(spec)
        if hf_config.notices(directory):
            raise ConfigError(
                f"--adapter={options.adapter}: {directory} holds more than a text model, which"
                " adapters of the text model do not fit; export the merged weights, without"
                " --adapter"
            )
    abstract = abstract_params(spec, cfg.model.param_dtype)
    trained = checkpoint_reader.read_policy(where, tick, lora.split(spec, abstract)[0])
    return Policy(directory, spec, step, abstract, trained)


def prompt_settings(cfg: Config) -> dict[str, Any]:
    """What the run's prompts had besides the chat template."""
    return {
        "system_prompt": cfg.chat.system_prompt,
        "enable_thinking": cfg.chat.enable_thinking,
        "prompt_template": cfg.data.prompt_template,
    }


def _check(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(
            f"--out={out}: {'is a file' if out.is_file() else 'exists and is not empty'}"
        )


def _merged(cfg: Config, policy: Policy, dtype: str) -> Any:
    """All params, adapters merged into the weights that they were trained on."""
    spec, frozen = policy.spec, lora.split(policy.spec, policy.abstract)[1]
    base = {}
    if frozen:
        shardings = jax.tree.map(lambda x: x.sharding, frozen)
        base = hf.load(policy.directory, spec, shardings, cfg.model.param_dtype)
    return lora.merge(spec, lora.join(policy.trained, base), dtype)


def _pick(workdir: Path, tick_of: dict[int, int], wanted: str, best: int | None) -> tuple[int, int]:
    """(policy step, tick) of the checkpoint to export.

    `best` is the step of the best one on the held-out questions.
    """
    if wanted == "best" and best is not None:
        wanted = str(best)
    if not tick_of:
        raise ConfigError(f"--workdir={workdir}: no checkpoints in it")
    if not wanted:
        step = max(tick_of)
    elif wanted.isdecimal() and int(wanted) in tick_of:
        step = int(wanted)
    else:
        raise ConfigError(
            f"--step={wanted}: no checkpoint of this policy step; there are"
            f" {', '.join(map(str, sorted(tick_of)))}"
        )
    return step, tick_of[step]


def abstract_params(spec: ModelSpec, dtype: str) -> Any:
    """Shapes and dtypes of the params: spread over all devices where they divide, else on one.

    The mesh of the run does not matter.
    """
    mesh = sharding.make_mesh((1, len(jax.devices()), 1))
    if sharding.problems(spec, mesh, sharding.LEARNER):
        mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    return sharding.abstract_params(spec, mesh, sharding.LEARNER, dtype)
