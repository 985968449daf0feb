"""Where the records of a run go: JSONL files, TensorBoard, Weights & Biases, each behind the
`Writer` protocol.
"""

import dataclasses
import json
import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from p2o_jax.config import Config, ConfigError
from p2o_jax.runtime import files
from p2o_jax.tracking import jsonl

Rows = Sequence[Mapping[str, Any]]


class Writer(Protocol):
    """One place that records go to. Only the main process has writers."""

    def metrics(self, tick: int, step: int, values: Mapping[str, float]) -> None:
        """Takes the metrics of a step, a prompt phase or an evaluation."""
        ...

    def rows(self, name: str, tick: int, rows: Rows) -> None:
        """Takes rows of one of the files in `jsonl.FILES`; a writer may ignore them."""
        ...

    def close(self) -> None:
        """Writes what is pending."""
        ...


class JsonlWriter:
    """NAME.jsonl in the run directory for each kind of row."""

    def __init__(self, workdir: Path):
        self.workdir = workdir

    def metrics(self, tick: int, step: int, values: Mapping[str, float]) -> None:
        """Appends a row to metrics.jsonl."""
        row = {"step": step, **{name: float(value) for name, value in values.items()}}
        self.rows("metrics", tick, [row])

    def rows(self, name: str, tick: int, rows: Rows) -> None:
        """Appends the rows to the file of that name."""
        jsonl.append(self.workdir / f"{name}.jsonl", tick, rows)

    def close(self) -> None:
        """Nothing is pending: every row is written at once."""


class TensorboardWriter:
    """TensorBoard events: a point for each metric."""

    def __init__(self, workdir: Path, step: int):
        """Events of `step` and later, from before a restart, are hidden."""
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step)

    def metrics(self, tick: int, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each metric's curve."""
        for name, value in values.items():
            self._events.add_scalar(name, float(value), step)

    def rows(self, name: str, tick: int, rows: Rows) -> None:
        """Ignores them: there are no curves of rows."""

    def close(self) -> None:
        """Writes what is pending."""
        self._events.close()


class WandbWriter:
    """The run at Weights & Biases: its settings and metrics. WANDB_MODE=offline keeps them in
    WORKDIR/wandb for later.

    A resumed run is the same one there, by the id in WORKDIR/wandb.json. Each point has a number of
    its own, which grows: what is computed again after a kill is not drawn twice, because the server
    takes no number that is not above the last it has.
    """

    def __init__(self, workdir: Path, cfg: Config):
        """Starts the run there, or resumes it.

        Raises:
            ConfigError: Weights & Biases refuses: no key, no such project, no network.
        """
        import wandb

        path = workdir / "wandb.json"
        run_id = (
            json.loads(path.read_text(encoding="utf-8"))["id"]
            if path.exists()
            else secrets.token_hex(4)
        )
        files.write_json(path, {"id": run_id})
        try:
            self.run = wandb.init(
                project=cfg.train.wandb_project,
                id=run_id,
                name=workdir.name,
                resume="allow",
                dir=str(workdir),
                config=dataclasses.asdict(cfg),
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as e:
            raise ConfigError(
                f"config.train.wandb_project={cfg.train.wandb_project}: {e} (WANDB_MODE=offline"
                " needs neither key nor network)"
            ) from e
        self.run.define_metric("*", step_metric="step")

    def metrics(self, tick: int, step: int, values: Mapping[str, float]) -> None:
        """Sends a point: an evaluation, or the step or prompt phase of the same tick, which
        comes after it.
        """
        number = 2 * tick + (not any(name.startswith("eval/") for name in values))
        self.run.log(
            {"step": step, **{name: float(value) for name, value in values.items()}},
            step=number,
            commit=True,
        )

    def rows(self, name: str, tick: int, rows: Rows) -> None:
        """Ignores them: they stay on this machine."""

    def close(self) -> None:
        """Sends what is pending and ends the run."""
        self.run.finish()


def problems(cfg: Config) -> list[str]:
    """A line if the records need a package that is not installed."""
    if cfg.train.wandb_project and find_spec("wandb") is None:
        return [
            f"config.train.wandb_project={cfg.train.wandb_project} needs the package wandb: pip"
            " install 'p2o-jax[wandb]'"
        ]
    return []
