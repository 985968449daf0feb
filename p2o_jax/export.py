"""Exports a policy: `python -m p2o_jax.export --workdir RUN --out DIR [--step N|best]`.

DIR becomes a Hugging Face directory with the tokenizer of the run's model. If that model has been
moved since, `--config.model.path=DIR` gives its new place.

Responses end, and chat messages are rendered, as in the run: config.json and generation_config.json
name the run's stop tokens, and chat_template.jinja is config.chat.template if the run had one.
p2o_jax.json holds what else the run's prompts had, which other programs must be given:
system_prompt and enable_thinking (an argument of many chat templates), and prompt_template, which
questions were put into.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2o_jax.config import Config, ConfigError, loading
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.main import command
from p2o_jax.runtime import files

if TYPE_CHECKING:
    from p2o_jax.models.spec import ModelSpec

COMMAND_LINE = CommandLine(
    "p2o_jax.export",
    __doc__,
    Flag("workdir", "Run directory", required=True, metavar="RUN"),
    Flag("out", "Directory to write; new or empty", required=True, metavar="DIR"),
    Flag(
        "step",
        "Policy step of the checkpoint, or best: the one with the highest held-out accuracy"
        " (default: the newest)",
        metavar="N|best",
    ),
    Flag("dtype", "Dtype of the weights", "bfloat16", choices=("bfloat16", "float32")),
    Flag(
        "adapter",
        "Write LoRA adapters as files for peft, in the dtype they were trained in; without it they"
        " are merged into the weights",
        choices=("peft",),
    ),
)


def run(argv: Sequence[str]) -> None:
    """Exports what the command line asks for.

    Raises:
        ConfigError: anything wrong with flags, run, model or target.
    """
    flags, overrides = COMMAND_LINE.parse(argv)
    workdir, out = Path(flags["workdir"]), Path(flags["out"])
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(
            f"--out={out}: {'is a file' if out.is_file() else 'exists and is not empty'}"
        )
    cfg = loading.read_config(workdir, overrides)

    import jax

    from p2o_jax.data.chat import load_tokenizer
    from p2o_jax.models import hf, hf_config, identity, lora
    from p2o_jax.runtime import distributed
    from p2o_jax.runtime.console import Reporter
    from p2o_jax.startup import run_directory
    from p2o_jax.tracking import checkpoint, checkpoint_reader
    from p2o_jax.tracking.best import read_best

    where = checkpoint.directory(workdir, cfg.checkpoint)
    best = read_best(where)
    step, tick = _pick(
        workdir, checkpoint_reader.policies(where), flags["step"], best.step if best else None
    )
    named = run_directory.read(workdir)
    directory = model_directory(cfg, named.revision(cfg.model.path))
    if changed := named.changed_model(directory, identity.digests(directory)):
        raise ConfigError(*changed)
    spec = dataclasses.replace(hf_config.read_spec(directory), lora=lora.from_config(cfg.lora))
    if flags["adapter"] and not spec.lora:
        raise ConfigError(
            f"--adapter={flags['adapter']}: {workdir} trained all weights (config.lora.rank=0),"
            " there are no adapters"
        )
    abstract = _abstract_params(spec, cfg.model.param_dtype)
    trained = checkpoint_reader.read_policy(where, tick, lora.split(spec, abstract)[0])
    tokenizer = load_tokenizer(directory)
    beside: dict[str, Any] = {
        "tokenizer_dir": directory,
        "generation_config": hf_config.token_ids(directory, tokenizer.stop_ids, tokenizer.pad_id),
        "chat_template": cfg.chat.template,
        "prompts": prompt_settings(cfg),
    }
    try:
        if flags["adapter"]:
            lora.save_peft(out, spec, trained, str(directory))
            hf_config.write_beside(out, **beside)
        else:
            frozen = lora.split(spec, abstract)[1]
            base = (
                hf.load(
                    directory,
                    spec,
                    jax.tree.map(lambda x: x.sharding, frozen),
                    cfg.model.param_dtype,
                )
                if frozen
                else {}
            )
            hf.save(
                out,
                spec,
                lora.merge(spec, lora.join(trained, base), flags["dtype"]),
                dtype=flags["dtype"],
                **beside,
            )
    except OSError as e:
        raise ConfigError(f"--out={out}: {e.strerror or e}") from e
    reporter = Reporter(enabled=distributed.is_main_process())
    for line in files.leftovers(out):
        reporter.line(line)
    reporter.line(
        f"{out}: the policy of {workdir} after {step} steps,"
        f" {'adapters' if flags['adapter'] else flags['dtype']}"
    )
    reporter.line(
        f"{out / hf_config.PROMPTS}: what the run's prompts had besides the chat template"
    )


def prompt_settings(cfg: Config) -> dict[str, Any]:
    """What the run's prompts had besides the chat template."""
    return {
        "system_prompt": cfg.chat.system_prompt,
        "enable_thinking": cfg.chat.enable_thinking,
        "prompt_template": cfg.data.prompt_template,
    }


def model_directory(cfg: Config, revision: str | None = None) -> Path:
    """The directory of the run's initial model, which also holds its tokenizer. The world's base is
    not pretrained for this.

    `revision` is the commit of a model from the hub; None: its newest.

    Raises:
        ConfigError: it is not there (any more).
    """
    from p2o_jax.models import hf_config
    from p2o_jax.toy_world import pretrain

    if cfg.model.path != "world":
        return hf_config.locate(cfg.model.path, revision)
    directory = pretrain.base_directory(cfg.world)
    if not directory.is_dir():
        raise ConfigError(
            f"{directory}: the run's base model is not there; start this in the folder where the"
            " run was started, or tell where it is with --config.world.cache_dir or"
            " --config.model.path"
        )
    return directory


def _pick(workdir: Path, tick_of: dict[int, int], wanted: str, best: int | None) -> tuple[int, int]:
    """(policy step, tick) of the checkpoint to export; `best` is the step of the best one on the
    held-out questions.
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


def _abstract_params(spec: "ModelSpec", dtype: str) -> Any:
    """Shapes and dtypes of the params, spread over all devices where they divide, else on one:
    whatever mesh the run was on.
    """
    import jax

    from p2o_jax.models import sharding

    mesh = sharding.make_mesh((1, len(jax.devices()), 1))
    if sharding.problems(spec, mesh, sharding.LEARNER):
        mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    return sharding.abstract_params(spec, mesh, sharding.LEARNER, dtype)


if __name__ == "__main__":
    command(run)
