"""Checkpoints: the learner's arrays and the host state of a RunState, in one orbax step each, written asynchronously."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from p2o_jax import config
from p2o_jax.records import RunState


class Checkpoints:
    """The newest `keep` states of a run, in workdir/checkpoints, numbered by tick."""

    def __init__(self, workdir: Path, cfg: config.Checkpoint):
        self.cfg = cfg
        options = ocp.CheckpointManagerOptions(max_to_keep=cfg.keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options, item_names=("learner", "host"))

    def latest(self, abstract_learner: Any) -> RunState | None:
        """The newest state, its arrays laid out as `abstract_learner` tells; None if there is none."""
        tick = self._manager.latest_step()
        if tick is None:
            return None
        args = ocp.args.Composite(learner=ocp.args.StandardRestore(abstract_learner), host=ocp.args.JsonRestore())
        found = self._manager.restore(tick, args=args)
        return RunState.restored(found["learner"], found["host"])

    def save_if_due(self, before: RunState, state: RunState) -> None:
        """Saves before and after every prompt phase, and every `every_steps` policy steps (0: not between)."""
        if "prompts" in (before.phase, state.phase) or (self.cfg.every_steps and state.step % self.cfg.every_steps == 0):
            self.save(state)

    def save(self, state: RunState) -> None:
        """Starts writing the state, unless it is there already."""
        if self._manager.latest_step() == state.tick:
            return
        args = ocp.args.Composite(learner=ocp.args.StandardSave(state.learner), host=ocp.args.JsonSave(state.host_state()))
        self._manager.save(state.tick, args=args)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def policies(workdir: Path) -> dict[int, int]:
    """The tick of the newest checkpoint of every policy step that has one. Only reads: the run may be going on."""
    directory = (workdir / "checkpoints").absolute()
    ticks = sorted(ocp.utils.checkpoint_steps(directory)) if directory.is_dir() else []
    reader = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    return {reader.restore(directory / str(tick) / "host")["step"]: tick for tick in ticks}


def read_policy(workdir: Path, tick: int, abstract_params: Any) -> Any:
    """The params of a checkpoint, laid out as `abstract_params` tells, without its optimizer state.

    Raises:
        ConfigError: the checkpoint is damaged, or of another model.
    """
    path = (workdir / "checkpoints" / str(tick) / "learner").absolute()
    handler, item = ocp.PyTreeCheckpointHandler(), {"params": abstract_params}
    args = ocp.args.PyTreeRestore(item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True)
    try:
        stored = _shapes(handler.metadata(epath.Path(path)).tree["params"])
        if stored != _shapes(abstract_params):
            raise ValueError(f"its params are {stored}, the model's {_shapes(abstract_params)}")
        return ocp.Checkpointer(handler).restore(path, args=args)["params"]
    except (ValueError, KeyError, OSError) as e:
        raise config.ConfigError(f"{path}: not a checkpoint of this model, or damaged ({' '.join(str(e).split())[:1000]})") from e


def stored_shapes(workdir: Path, tick: int) -> dict[str, list[int]]:
    """The shape of every trained weight in a checkpoint, by its path in the params."""
    path = (workdir / "checkpoints" / str(tick) / "learner").absolute()
    return _shapes(ocp.PyTreeCheckpointHandler().metadata(epath.Path(path)).tree["params"])


def _shapes(params: Any) -> dict[str, list[int]]:
    return {".".join(str(k.key) for k in path): list(x.shape) for path, x in jax.tree.leaves_with_path(params)}
