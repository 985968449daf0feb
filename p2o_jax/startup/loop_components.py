"""What every training loop needs besides its state: `components` adds what P²O needs, and
`sft_components` what supervised training needs.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax

from p2o_jax.config import Config
from p2o_jax.data import sources
from p2o_jax.data.questions import Questions
from p2o_jax.models import lora, sharding
from p2o_jax.rl.learner import Learner
from p2o_jax.rollout.gepa_adapter import settings_digest
from p2o_jax.runtime import distributed, rng
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup import run_directory
from p2o_jax.startup.model import Model
from p2o_jax.tracking import checkpoint
from p2o_jax.tracking.checkpoint import Checkpoints
from p2o_jax.tracking.writers import Writer

S = TypeVar("S", bound=checkpoint.State)
Opened = tuple[Model, sources.Loaded, list[sources.Loaded]]  # and training data, held-out data


class LoopComponents(Generic[S]):
    """The parts of a training run. Each is made on first use, so that a loop pays for what it uses.

    A loop gives its name, its preflight, its learner, its recorder and its first state.

    Args:
        cfg: the resolved config.
        workdir: the run directory.
        reporter: receives lines and times phases.
        restart: begin anew, and move the records of the run in `workdir` away.
        writers: receive the records of the run, besides its files.

    Raises:
        ConfigError: with a line for everything that can be known to be wrong before anything
            compiles or is written.
    """

    LOOP = run_directory.P2O
    PARTS: tuple[str, ...] = ("record", "checkpoints")  # to be closed, the last one first
    record: Any  # the loop's LoopRecorder
    learner: Any  # the loop's Learner

    def __init__(
        self,
        cfg: Config,
        workdir: Path,
        reporter: Reporter,
        restart: bool = False,
        writers: Sequence[Writer] = (),
    ):
        self.cfg, self.workdir, self.reporter = cfg, workdir, reporter
        self.writers = writers
        self.compiles = distributed.CompileCounter()
        where = checkpoint.directory(workdir, cfg.checkpoint)
        self.directory = run_directory.read(workdir, where, restart, self.LOOP)
        self.model, self.train_set, self.heldout_sets = self._preflight()
        self.chat = self.model.chat
        self.questions = Questions(self.train_set.questions, self.per_step, cfg.train.seed)

    def _preflight(self) -> Opened:
        raise NotImplementedError

    @property
    def per_step(self) -> int:
        """Questions of a step."""
        raise NotImplementedError

    def initial_state(self, learner: Any) -> S:
        """The state that a run begins with, for this device part."""
        raise NotImplementedError

    @property
    def from_json(self) -> Callable[[Any, Mapping[str, Any]], S]:
        """Makes a state of its device part and what its `to_json` returned."""
        raise NotImplementedError

    def make_learner(self, kind: type[Learner], num_updates: int) -> Any:
        """A learner of this kind for the run's model."""
        return kind(
            self.model.spec,
            self.model.mesh,
            self.cfg,
            num_updates,
            self.model.dtype,
            self.chat.pad_id,
            self.workdir / "bad_batch.npz",
        )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that may not change in the run."""
        return run_directory.fixed_settings(self.cfg, self.LOOP)

    @cached_property
    def checkpoints(self) -> Checkpoints[S]:
        """The states of the run. With `restart` the records so far are moved away first."""
        if self.directory.restart:
            self.reporter.line(self.directory.put_away())
        return Checkpoints(
            self.workdir,
            self.cfg.checkpoint,
            self.reporter.line,
            settings_digest(self.settings),
            self.learner.unpadded_state(),
            run_directory.evaluation_digest(self.cfg, self.heldout_sets),
            self.directory.note_checkpoint,
        )

    def key(self, *names: str | int) -> jax.Array:
        """The run's key of this name."""
        return rng.key(self.cfg.train.seed, *names)

    def prepare(self) -> None:
        """Makes the parts that may refuse the config, then opens the checkpoints; a second call
        does nothing.

        Until the checkpoints are opened nothing is written.
        """
        if "checkpoints" not in self.__dict__:
            self._make_parts()
            _ = self.checkpoints

    def _make_parts(self) -> None:
        _ = self.learner

    def open_state(self, is_finished: Callable[[S], bool]) -> S:
        """The newest checkpoint's state, or the initial one; the run's records are cut to it.

        No record is written, and nothing compiled, before a checkpoint that exists was restored.
        Nothing is compiled for a state in which the run is finished.
        """
        self.prepare()
        state = self.checkpoints.latest(self.learner.abstract_state(), self.from_json)
        if state is None:
            self.directory.check_begin()
        self.directory.write(
            self.cfg, self.model.directory, self.model.digests, self.train_set, *self.heldout_sets
        )
        finished = state is not None and is_finished(state)
        if not finished:
            self._compile_ahead(state.step if state else 0)
        state = self._initialized(state)
        if state.tick == 0:
            self.checkpoints.save(state)
        elif finished:
            self.reporter.line(
                f"{self.workdir} is finished, at step {state.step}; its last evaluation is repeated"
            )
        else:
            line = f"resuming {self.workdir} at step {state.step}, next: {state.phase}"
            self.reporter.line(line)
        self.record.open(state.tick, state.step)
        self.checkpoints.last = state
        return state

    def read_state(self) -> S:
        """The newest checkpoint's state, or the initial one; no record is written or cut."""
        self.prepare()
        return self._initialized(
            self.checkpoints.latest(self.learner.abstract_state(), self.from_json)
        )

    def _initialized(self, state: S | None) -> S:
        """The state, or the initial one; adapters need the rest of the model in either case."""
        if state is None or self.model.spec.lora:
            fresh = self.learner.init(self._load_params())
            state = state or self.initial_state(fresh)
        return state

    def _load_params(self) -> Any:
        shardings = sharding.param_shardings(self.model.spec, self.model.mesh, sharding.LEARNER)
        params = self.model.load(self.cfg.model.param_dtype)
        return lora.add(self.model.spec, params, self.key("lora"), shardings)

    def _compile_ahead(self, step: int) -> None:
        """Compiles what can be compiled before this step, the first one of this start."""

    def describe(self) -> str:
        """What runs where: a line, or several, for the start of the run."""
        raise NotImplementedError

    def save_last(self) -> None:
        """Saves the newest state of the loop, as far as there is one."""
        if "checkpoints" in self.__dict__:
            self.checkpoints.save_last()

    def close(self) -> None:
        """Writes what is pending and stops the workers of the parts that were made."""
        with contextlib.ExitStack() as stack:  # whichever fails, the others are closed
            for name in self.PARTS:
                if name in self.__dict__:
                    stack.callback(self.__dict__[name].close)
