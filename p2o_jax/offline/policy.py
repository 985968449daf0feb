"""What a command works with: a model directory, or the policy of a run, which it exports first."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import jax

from p2o_jax.config import Config, ConfigError, loading
from p2o_jax.offline import settings
from p2o_jax.offline.export import ExportOptions, export
from p2o_jax.rewards.scorer import untrusted
from p2o_jax.runtime import distributed, files
from p2o_jax.tracking.results import best_templates


class ModelSource(NamedTuple):
    """A model directory, or a step of a run."""

    model: str = ""  # either this
    workdir: str = ""  # or this
    step: str = ""  # of the run: a policy step, or `best`; empty: the newest checkpoint
    allow_reward_fn: bool = False  # run the code that the run directory names


def base_config(source: ModelSource, overrides: settings.Overrides) -> Config:
    """The config of the run, or the defaults.

    Raises:
        ConfigError: code of the run directory that is not allowed to run.
    """
    if not source.workdir:
        return Config()
    base = loading.read_config(Path(source.workdir))
    problems = untrusted(base.reward, str(Path(source.workdir) / "config.json"))
    if problems and not source.allow_reward_fn and "reward.fn" not in dict(overrides):
        raise ConfigError(*problems)
    return base


def directory(
    source: ModelSource, folder: Path, overrides: settings.Overrides, stack: ExitStack
) -> str:
    """The model directory, or a new one with the policy of the run.

    Args:
        source: which model.
        folder: where an export is written, under a name that is not taken; it is deleted when the
            stack closes.
        overrides: of settings.
        stack: deletes the export.

    Raises:
        ConfigError: anything wrong with the run or its checkpoints.
    """
    if not source.workdir:
        return source.model
    place = distributed.broadcast_from_main(lambda: str(files.unused(folder)))
    if distributed.is_main_process():
        stack.callback(shutil.rmtree, place, ignore_errors=True)
    on_cpu = jax.devices()[0].platform == "cpu"
    export(
        ExportOptions(
            Path(source.workdir),
            Path(place),
            source.step,
            "float32" if on_cpu else "bfloat16",
            overrides=[
                (key, text)
                for key, text in overrides
                if key.startswith(("model.", "world.", "checkpoint."))
            ],
        )
    )
    return place


def chosen_template(template: str, workdir: str) -> str:
    """The template's text; for `best` the run's with the best dev score of any prompt phase.

    Raises:
        ConfigError: no template of the run was better than none.
    """
    if template != "best":
        return template.strip()
    if not (best := best_templates(Path(workdir), 1)):
        raise ConfigError(f"--template=best: no template in {workdir} was better than none")
    return best[0]["text"]
