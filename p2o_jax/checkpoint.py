"""Checkpoints: the learner's arrays and the host state of a RunState, in one orbax step each, written asynchronously.

Orbax makes a step appear whole or not at all. What may befall it afterwards is found when it is read: the host state carries its
own digest, and a sum over the bits of every array, which is the same on any mesh.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax import lax

from p2o_jax import config, runtime
from p2o_jax.records import RunState, digest

ITEMS = ("learner", "host")
BEST = "best.json"
_UNREADABLE = (ValueError, KeyError, TypeError, OSError, RuntimeError)  # what orbax and its stores raise at a damaged step


class Best(NamedTuple):
    """The state with the highest held-out accuracy so far."""

    tick: int
    step: int
    accuracy: float


class Checkpoints:
    """The states of a run, numbered by tick: the newest `keep`, those of every `keep_every`-th policy step, and the best.

    `tell` is given a line for every step that is damaged. `settings` names the run, so that none goes on from another's states.

    Raises:
        ConfigError: the folder cannot be written or is another run's, the disk is full, or no step can be read; the steps written
            before stay.
    """

    def __init__(self, workdir: Path, cfg: config.Checkpoint, tell: Callable[[str], None] = lambda line: None, settings: str = ""):
        self.cfg, self.tell, self.settings = cfg, tell, settings
        self.directory = directory(workdir, cfg)
        self.last: RunState | None = None  # what the loop told of last
        options = ocp.CheckpointManagerOptions(preservation_policy=_Preserved(self._preserved), cleanup_tmp_directories=True)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _check_shared(self.directory)
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=ITEMS)
        except (OSError, ImportError) as e:  # gs:// needs the extra "gs"
            raise config.ConfigError(f"{self.directory}: no checkpoint can be written: {e}") from e
        self._steps = {tick: step for step, tick in _steps(self.directory)}  # policy steps, by tick
        best = read_best(self.directory)  # a kill may have come between the note of it and the end of its step
        self._best = best if best and best.tick in self._steps else None

    def latest(self, abstract_learner: Any) -> RunState | None:
        """The newest state that is whole, its arrays laid out as `abstract_learner` tells; None if there is none at all.

        Damaged ones are told and put aside, in a folder beside the checkpoints'.
        """
        ticks = sorted(self._manager.all_steps(), reverse=True)
        for tick in ticks:
            state = self._read(tick, abstract_learner)
            if state:
                return state
            self._set_aside(tick)
        if ticks:
            raise config.ConfigError(f"{self.directory}: none of the checkpoints {ticks} can be read, see above; they are in {self._aside}")
        return None

    def save_if_due(self, before: RunState, state: RunState) -> None:
        """Saves before and after every prompt phase, and every `every_steps` policy steps (0: not between)."""
        self.last = state
        self._check()
        if "prompts" in (before.phase, state.phase) or (self.cfg.every_steps and state.step % self.cfg.every_steps == 0):
            self.save(state)

    def save_if_best(self, state: RunState, accuracy: float) -> None:
        """Saves, and keeps, a state that has done better on the held-out questions than any before."""
        if self._best is None or accuracy > self._best.accuracy:
            self._best = Best(state.tick, state.step, accuracy)
            if runtime.is_main_process():
                _write_whole(self.directory / BEST, json.dumps(self._best._asdict()))
            self.save(state)

    def save_last(self) -> None:
        """Saves the state that the loop told of last, unless an update that was broken off has used it up."""
        if self.last and not any(x.is_deleted() for x in jax.tree.leaves(self.last.learner) if isinstance(x, jax.Array)):
            self.save(self.last)

    def save(self, state: RunState) -> None:
        """Starts writing the state, unless it is there already."""
        self._check()
        if state.tick in self._manager.all_steps():
            return
        self._steps[state.tick] = state.step
        host = _sealed({"settings": self.settings, "state": state.host_state(), "bits": bit_sums(state.learner)})
        args = ocp.args.Composite(learner=ocp.args.StandardSave(state.learner), host=ocp.args.JsonSave(host))
        self._guarded(lambda: self._manager.save(state.tick, args=args))

    def close(self) -> None:
        """Waits until everything is written, and deletes what a kill has kept from being deleted."""

        def finish() -> None:
            self._manager.wait_until_finished()
            ticks = self._manager.all_steps()
            for tick in sorted(set(ticks) - self._preserved(ticks)):
                self._manager.delete(tick)

        try:
            self._guarded(finish)
        finally:
            with contextlib.suppress(*_UNREADABLE):  # it tells once more of what has been told
                self._manager.close()

    def _check(self) -> None:
        """Raises what has gone wrong with writing since the last call."""
        self._guarded(self._manager.check_for_errors)

    def _guarded(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except _UNREADABLE as e:
            good = sorted(_ticks(self.directory))
            reason = f"{self.directory}: a checkpoint could not be written: {_in_a_line(e)}"
            raise config.ConfigError(f"{reason}; those of ticks {good} are whole, and the same command goes on from the last") from e

    def _read(self, tick: int, abstract_learner: Any) -> RunState | None:
        """The state of a step; None, told, if it is damaged as some process sees it."""
        args = ocp.args.Composite(learner=ocp.args.StandardRestore(abstract_learner), host=ocp.args.JsonRestore())
        state, reason, settings = None, "", self.settings
        try:
            found = self._manager.restore(tick, args=args)
            host = _opened(found["host"])
            if host["bits"] != bit_sums(found["learner"]):
                raise ValueError("its arrays are not those that were saved")
            state, settings = RunState.restored(found["learner"], host["state"]), host["settings"]
        except _UNREADABLE as e:
            reason = f": {_in_a_line(e)}"
        if settings != self.settings:
            raise config.ConfigError(f"{self.directory} holds checkpoints of a run with other settings; give another folder")
        if runtime.everywhere(state is not None):
            return state
        self.tell(f"checkpoint {self.directory / str(tick)} is damaged and is left out{reason}")
        return None

    @property
    def _aside(self) -> epath.Path:
        return self.directory.parent / f"{self.directory.name}_damaged"

    def _set_aside(self, tick: int) -> None:
        def move() -> None:
            self._aside.mkdir(exist_ok=True)
            number, target = 0, self._aside / str(tick)
            while target.exists():
                number, target = number + 1, self._aside / f"{tick}.{number + 1}"
            (self.directory / str(tick)).rename(target)

        runtime.from_process_0(move)
        self._steps.pop(tick, None)
        self._manager.reload()

    def _preserved(self, ticks: Sequence[int]) -> set[int]:
        """Which of the steps stay: see the class."""
        every = self.cfg.keep_every
        newest_of_step = {self._steps.get(tick, tick): tick for tick in sorted(ticks)}  # a prompt phase changes no weights
        milestones = {tick for step, tick in newest_of_step.items() if every and step % every == 0}
        return {*sorted(ticks)[-self.cfg.keep :], *milestones, *({self._best.tick} if self._best else ())}


class _Preserved(ocp.checkpoint_managers.PreservationPolicy):
    """Orbax's form of "which ticks stay"."""

    def __init__(self, chosen: Callable[[Sequence[int]], set[int]]):
        self.chosen = chosen

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        stay = self.chosen([info.step for info in checkpoints])
        return [info.step in stay for info in checkpoints]


def directory(workdir: Path, cfg: config.Checkpoint) -> epath.Path:
    """Where a run's checkpoints are: config.checkpoint.path, which may be gs://BUCKET/FOLDER, or a folder of the workdir."""
    return epath.Path(cfg.path) if "://" in cfg.path else epath.Path((Path(cfg.path) if cfg.path else workdir / "checkpoints").absolute())


def _check_shared(where: epath.Path) -> None:
    """Raises a ConfigError if not all processes see the same folder: they would wait for each other's parts of a checkpoint."""
    if jax.process_count() == 1:
        return

    def leave_note() -> str:
        name = f"note-{secrets.token_hex(8)}"
        (where / name).write_text("")
        return name

    note = where / runtime.from_process_0(leave_note)
    shared = runtime.everywhere(note.exists())
    runtime.from_process_0(note.unlink)
    if not shared:
        raise config.ConfigError(
            f"{where}: not all processes see the same folder; give one that they share (--workdir, config.checkpoint.path)"
        )


def space_problems(workdir: Path, cfg: config.Checkpoint, state_bytes: int, num_steps: int) -> list[str]:
    """A line if the disk has no room for the checkpoints that are planned, one in writing included."""
    where = directory(workdir, cfg)
    if "://" in str(where):
        return []
    milestones = num_steps // cfg.keep_every if cfg.keep_every else 0
    planned = cfg.keep + 2 + milestones  # the best, and the one in writing
    existing = next(p for p in (Path(where), *Path(where).parents) if p.exists())
    there = sum(p.stat().st_size for p in Path(where).rglob("*") if p.is_file()) if Path(where).exists() else 0
    free = os.statvfs(existing).f_bavail * os.statvfs(existing).f_frsize
    if planned * state_bytes <= free + there:
        return []
    return [
        f"{where}: {free / 2**30:.1f} GiB are free, and up to {planned} checkpoints of {state_bytes / 2**30:.1f} GiB are planned "
        f"(config.checkpoint.keep={cfg.keep}, the best, one in writing, {milestones} of config.checkpoint.keep_every={cfg.keep_every})"
    ]


def bit_sums(tree: Any) -> dict[str, int]:
    """The sum, modulo 2^32, of the bits of every array, taken as whole numbers: the same however the array is split over devices."""
    sums = _bit_sums(jax.tree.leaves(tree))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]
    return {name: int(runtime.to_host(x)) for name, x in zip(names, sums, strict=True)}


@jax.jit
def _bit_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    words = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
    return [jnp.sum(lax.bitcast_convert_type(x, words[x.dtype.itemsize]).astype(jnp.uint32), dtype=jnp.uint32) for x in leaves]


def _sealed(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "digest": digest(json.dumps(values, sort_keys=True))}


def _opened(values: dict[str, Any]) -> dict[str, Any]:
    """What was sealed. Raises ValueError if it is not what it was."""
    rest = {k: v for k, v in values.items() if k != "digest"}
    if values.get("digest") != digest(json.dumps(rest, sort_keys=True)):
        raise ValueError("its host state is not the one that was saved")
    return rest


def _in_a_line(e: BaseException) -> str:
    text = " ".join(str(e).split()) or type(e).__name__
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-300:]}"


def _write_whole(path: epath.Path, text: str) -> None:
    temporary = path.parent / f"{path.name}.tmp"
    temporary.write_text(text)
    temporary.replace(path)


def _ticks(where: epath.Path) -> list[int]:
    return sorted(ocp.utils.checkpoint_steps(where)) if where.is_dir() else []


def _steps(where: epath.Path) -> list[tuple[int, int]]:
    """(policy step, tick) of every step whose host state can be read."""
    reader = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    found = []
    for tick in _ticks(where):
        try:
            found.append((_opened(reader.restore(where / str(tick) / "host"))["state"]["step"], tick))
        except _UNREADABLE:
            continue
    return found


def policies(where: epath.Path) -> dict[int, int]:
    """The tick of the newest checkpoint of every policy step that has one. Only reads: the run may be going on."""
    return dict(_steps(where))


def read_best(where: epath.Path) -> Best | None:
    """The state that did best on the held-out questions, if there is a note of one."""
    try:
        return Best(**json.loads((where / BEST).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def read_policy(where: epath.Path, tick: int, abstract_params: Any) -> Any:
    """The params of a checkpoint, laid out as `abstract_params` tells, without its optimizer state.

    Raises:
        ConfigError: the checkpoint is damaged, or of another model.
    """
    path = where / str(tick) / "learner"
    handler, item = ocp.PyTreeCheckpointHandler(), {"params": abstract_params}
    args = ocp.args.PyTreeRestore(item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True)
    try:
        stored = _shapes(handler.metadata(path).tree["params"])
        if stored != _shapes(abstract_params):
            raise ValueError(f"its params are {stored}, the model's {_shapes(abstract_params)}")
        return ocp.Checkpointer(handler).restore(path, args=args)["params"]
    except (ValueError, KeyError, OSError) as e:
        raise config.ConfigError(f"{path}: not a checkpoint of this model, or damaged ({_in_a_line(e)})") from e


def stored_shapes(where: epath.Path, tick: int) -> dict[str, list[int]]:
    """The shape of every trained weight in a checkpoint, by its path in the params."""
    return _shapes(ocp.PyTreeCheckpointHandler().metadata(where / str(tick) / "learner").tree["params"])


def _shapes(params: Any) -> dict[str, list[int]]:
    return {".".join(str(k.key) for k in path): list(x.shape) for path, x in jax.tree.leaves_with_path(params)}
