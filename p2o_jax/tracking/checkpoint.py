"""Checkpoints: the learner's arrays and the host state of a loop's state, in one orbax step each,
written asynchronously.

Orbax makes a step appear whole or not at all. What happens to its files afterwards is found by
digests of our own (`file_digests`), which are checked before anything is restored: only a step
whose files have changed is damaged. An exception while restoring says nothing about the files.
The host state holds a description of every array and a sum over its bits, which is the same on
any mesh, so that a state that does not fit, or was read wrongly, is refused.
"""

import contextlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from p2o_jax import config
from p2o_jax.runtime import allocator, distributed, file_digests
from p2o_jax.tracking import best, checkpoint_reader
from p2o_jax.types import digest

ITEMS = ("learner", "host")


class State(Protocol):
    """The state of a training loop, as far as checkpoints need it; `state.RunState` is one."""

    @property
    def learner(self) -> Any:
        """The device part: a tree of arrays."""
        ...

    @property
    def tick(self) -> int:
        """The number of the state, which names its checkpoint."""
        ...

    @property
    def step(self) -> int:
        """Policy steps so far."""
        ...

    @property
    def phase(self) -> str:
        """What comes next. A change of phase is always saved."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The rest of the state, with `step` under that name."""
        ...


S = TypeVar("S", bound=State)


class Checkpoints(Generic[S]):
    """The states of a run, numbered by tick.

    Kept are the newest `keep`, those of every `keep_every`-th policy step, and the best.

    Args:
        workdir: the run directory.
        cfg: `config.checkpoint`.
        log: receives a line for every step that is damaged.
        settings: a digest of the run's settings; steps saved under another one are refused.
        unpadded: shapes and dtypes of the learner's state without vocabulary padding, which
            depends on the mesh; None: the states that are saved have no padding.
        evaluation: names what the accuracies of states depend on besides these. Those measured
            otherwise are not compared with; the best state among them stays.
        completed: called on all processes when the first checkpoint of this start is complete,
            at the latest before the second is written.

    Raises:
        ConfigError: the folder cannot be written or belongs to another run, the disk is full, no
            step is undamaged, or the newest cannot be restored. Only damaged steps are moved.
    """

    def __init__(
        self,
        workdir: Path,
        cfg: config.CheckpointConfig,
        log: Callable[[str], None] = lambda line: None,
        settings: str = "",
        unpadded: Any = None,
        evaluation: str = "",
        completed: Callable[[], None] = lambda: None,
    ):
        self.cfg, self.log, self.settings, self.unpadded = cfg, log, settings, unpadded
        self.evaluation, self._completed = evaluation, completed
        self.directory = directory(workdir, cfg)
        self.last: S | None = None  # the newest state that the loop has reported
        self._saving = 0  # tick of the step that is being written
        self._in_use = False  # a state was restored or saved: until then nothing may be deleted
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Preserved(self._preserved),
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _check_shared(self.directory)
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=ITEMS)
        except (OSError, ImportError) as e:  # gs:// needs the extra "gs"
            raise config.ConfigError(f"{self.directory}: no checkpoint can be written: {e}") from e
        self._steps, self._unreadable = checkpoint_reader.policy_steps(self.directory)
        text = checkpoint_reader.attempt(
            self.directory / best.FILE, lambda: best.read_text(self.directory)
        )
        note = best.parse(self.directory, text)
        # a kill may have come before the best one's step was written
        ticks = {
            *self._steps,
            *self._unreadable,
        }
        self._best = best.Best(*note[:3]) if note and note.tick in ticks else None
        # under other settings of evaluation
        self._best_before: set[int] = {*note.before} & ticks if note else set()
        if note and self._best and note.evaluation != evaluation:
            self.log(
                f"config.eval is not that of step {note.step}, the best so far"
                f" ({note.accuracy:.3f}): the comparison begins anew. Its checkpoint stays in"
                f" {self.directory / str(note.tick)}"
            )
            self._best_before, self._best = {*self._best_before, note.tick}, None

    def latest(
        self, abstract_learner: Any, from_json: Callable[[Any, Mapping[str, Any]], S]
    ) -> S | None:
        """The newest undamaged state, laid out as `abstract_learner`; None if no step was written.

        `from_json` makes the state of its device part and what `to_json` returned.

        Damaged steps are reported and moved to a folder beside the checkpoints'.
        """
        ticks = sorted(self._manager.all_steps(), reverse=True)
        self._check_owner(ticks)
        for tick in ticks:
            if damage := checkpoint_reader.damage_of(self.directory / str(tick)):
                self.log(f"checkpoint {self.directory / str(tick)} is damaged: {damage}")
                self._set_aside(tick)
            else:
                return self._restore(tick, abstract_learner, from_json)
        damaged = distributed.broadcast_from_main(
            lambda: self._aside.is_dir() and any(self._aside.iterdir())
        )
        if damaged:
            raise config.ConfigError(
                f"{self.directory}: no undamaged checkpoint is left; the damaged ones are in"
                f" {self._aside}. Put a good copy of one back, or begin anew with --restart, which"
                " keeps the old records"
            )
        return None

    def save_if_due(self, before: S, state: S) -> None:
        """Saves where the phase changes, and every `every_steps` policy steps (0: not between)."""
        self.last = state
        self._check()
        if before.phase != state.phase or (
            self.cfg.every_steps and state.step % self.cfg.every_steps == 0
        ):
            self.save(state)

    def save_if_best(self, state: S, score: float) -> None:
        """Saves, and keeps, a state whose score on held-out data is higher than any before."""
        if self._best is None or score > self._best.accuracy:
            self._best = best.Best(state.tick, state.step, score)
            if distributed.is_main_process():
                note = best.Note(*self._best, self.evaluation, tuple(sorted(self._best_before)))
                _write_whole(self.directory / best.FILE, json.dumps(note._asdict()))
            self.save(state)

    def save_last(self) -> None:
        """Saves the state that the loop reported last, unless an update that was broken off has
        used it up.
        """
        if self.last and not any(
            x.is_deleted() for x in jax.tree.leaves(self.last.learner) if isinstance(x, jax.Array)
        ):
            self.save(self.last)

    def save(self, state: S) -> None:
        """Starts writing the state, unless it is there already."""
        self._check()
        self._in_use = True
        if state.tick in self._manager.all_steps():
            return
        allocator.give_back(jax.default_backend())  # on a CPU, orbax copies the arrays
        self._steps[state.tick] = state.step
        values = {
            "settings": self.settings,
            "state": state.to_json(),
            "arrays": checkpoint_reader.describe(
                state.learner if self.unpadded is None else self.unpadded
            ),
            "bits": checkpoint_reader.bit_sums(state.learner),
        }
        host = ocp.args.JsonSave(_sealed(values))
        args = ocp.args.Composite(learner=ocp.args.StandardSave(state.learner), host=host)

        def write() -> None:
            self._manager.wait_until_finished()
            if self._manager.all_steps():
                self._completed()
            self._saving = state.tick
            self._manager.save(state.tick, args=args)

        self._guarded(write)

    def close(self) -> None:
        """Waits until everything is written, and deletes what a kill has kept from being
        deleted.
        """

        def finish() -> None:
            self._manager.wait_until_finished()
            ticks = self._manager.all_steps() if self._in_use else []
            if ticks:
                self._completed()
            for tick in sorted(set(ticks) - self._preserved(ticks)):
                self._manager.delete(tick)

        try:
            self._guarded(finish)
        finally:
            with contextlib.suppress(Exception):  # it raises once more what has been reported
                self._manager.close()

    def _check(self) -> None:
        """Raises what has gone wrong with writing since the last call."""
        self._guarded(self._manager.check_for_errors)

    def _guarded(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as e:  # orbax and its stores raise anything, bare exceptions included
            good = sorted(checkpoint_reader.ticks_in(self.directory))
            reason = (
                f"{self.directory}: a checkpoint could not be written:"
                f" {checkpoint_reader.one_line(e)}"
            )
            raise config.ConfigError(
                f"{reason}; those of ticks {good} are whole, and the same command continues from"
                " the last"
            ) from e

    def _write_digests(self) -> None:
        """Called by orbax on the main process when a step is complete, but not yet visible."""
        tick = str(self._saving)
        hidden = [p for p in self.directory.iterdir() if p.name.startswith(f"{tick}.")]
        file_digests.write(hidden[0] if hidden else self.directory / tick, ITEMS)

    def _check_owner(self, ticks: Sequence[int]) -> None:
        """Raises a ConfigError if a step was saved by a run with other settings."""

        def settings_of(path: epath.Path) -> str:
            try:
                return checkpoint_reader.host_state(path).get("settings", "")
            except checkpoint_reader.Damaged:
                return self.settings  # `damage_of` reports it

        for tick in ticks:
            path = self.directory / str(tick)
            if (
                checkpoint_reader.attempt(path, lambda path=path: settings_of(path))
                != self.settings
            ):
                raise config.ConfigError(
                    f"{path} is a checkpoint of a run with other settings; give another folder"
                )

    def _restore(
        self, tick: int, abstract_learner: Any, from_json: Callable[[Any, Mapping[str, Any]], S]
    ) -> S:
        """The state of an undamaged step.

        Raises:
            ConfigError: its arrays are not this run's, or the store failed; nothing is moved.
        """
        path = self.directory / str(tick)
        host = checkpoint_reader.host_state(path)
        unpadded = abstract_learner if self.unpadded is None else self.unpadded
        if problems := checkpoint_reader.differing_arrays(
            host.get("arrays", {}), checkpoint_reader.describe(unpadded)
        ):
            raise config.ConfigError(*(f"{path}: {line}" for line in problems))
        # not strict: rows that pad the vocabulary are cut off or added, as the mesh needs it
        args = ocp.args.Composite(learner=ocp.args.StandardRestore(abstract_learner, strict=False))
        learner = checkpoint_reader.attempt(path, lambda: self._manager.restore(tick, args=args))[
            "learner"
        ]
        checkpoint_reader.check_bits(path, host["bits"], learner)
        try:
            state = from_json(learner, host["state"])
        except (KeyError, TypeError, AttributeError) as e:
            raise config.ConfigError(
                f"{path}: written by another version of p2o_jax ({type(e).__name__}: {e})"
            ) from e
        self._in_use = True
        return state

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

        distributed.broadcast_from_main(move)
        self._steps.pop(tick, None)
        self._manager.reload()

    def _preserved(self, ticks: Sequence[int]) -> set[int]:
        """Which of the steps stay: see the class. One whose policy step cannot be read stays."""
        every = self.cfg.keep_every
        known = [tick for tick in sorted(ticks) if tick in self._steps]
        # a prompt phase changes no weights
        newest_of_step = {self._steps[tick]: tick for tick in known}
        milestones = {tick for step, tick in newest_of_step.items() if every and step % every == 0}
        best_ticks = {*self._best_before, *([self._best.tick] if self._best else [])}
        return {
            *sorted(ticks)[-self.cfg.keep :],
            *milestones,
            *best_ticks,
            *self._unreadable.intersection(ticks),
        }


class _Preserved(ocp.checkpoint_managers.PreservationPolicy):
    """Orbax's form of "which ticks stay"."""

    def __init__(self, chosen: Callable[[Sequence[int]], set[int]]):
        self.chosen = chosen

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        stay = self.chosen([info.step for info in checkpoints])
        return [info.step in stay for info in checkpoints]


def directory(workdir: Path, cfg: config.CheckpointConfig) -> epath.Path:
    """Where a run's checkpoints are: config.checkpoint.path, which may be gs://BUCKET/FOLDER, or
    a folder of the workdir.
    """
    return (
        epath.Path(cfg.path)
        if "://" in cfg.path
        else epath.Path((Path(cfg.path) if cfg.path else workdir / "checkpoints").absolute())
    )


def _check_shared(where: epath.Path) -> None:
    """Raises a ConfigError if not all processes see the same folder: they would wait for each
    other's parts of a checkpoint.
    """
    if jax.process_count() == 1:
        return

    def leave_note() -> str:
        name = f"note-{secrets.token_hex(8)}"
        (where / name).write_text("")
        return name

    note = where / distributed.broadcast_from_main(leave_note)
    shared = distributed.all_processes(note.exists())
    distributed.broadcast_from_main(note.unlink)
    if not shared:
        raise config.ConfigError(
            f"{where}: not all processes see the same folder; give one that they share (--workdir,"
            " config.checkpoint.path)"
        )


def _sealed(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "digest": digest(json.dumps(values, sort_keys=True))}


def _write_whole(path: epath.Path, text: str) -> None:
    temporary = path.parent / f"{path.name}.tmp"
    temporary.write_text(text)
    temporary.replace(path)
