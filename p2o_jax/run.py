"""A training run as an object: what `p2o_jax.main` runs, and the Python API of the package.

from p2o_jax import Run

with Run("configs/smoke.py", overrides={"train.epochs": 1}) as run:
    run.train(on_metrics=lambda step, values: print(step, values))
    print(run.evaluate(), run.samples()[-1]["response"])
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from p2o_jax import config
from p2o_jax.config import Config, ConfigError, loading
from p2o_jax.runtime import preemption

if TYPE_CHECKING:
    from p2o_jax.runtime.console import Reporter
    from p2o_jax.startup.components import Components
    from p2o_jax.state import RunState
    from p2o_jax.tracking.writers import Rows

OnMetrics = Callable[[int, Mapping[str, float]], object]


class Run:
    """One training run in a directory of its own, which is locked while it is open.

    Nothing is loaded before it is needed; `train` and `evaluate` load the model.

    Args:
        source: a config file, or a Config.
        workdir: the run directory; None: runs/NAME_OF_THE_CONFIG_FILE.
        overrides: settings by their keys, such as {"optim.lr": 1e-6}.
        restart: begin anew; the records so far move to WORKDIR/previous-1.
        poll: called wherever the run can be left; raises `preemption.Preempted` to leave it.

    Raises:
        ConfigError: no such file, or a setting that does not exist or has the wrong type.
    """

    def __init__(
        self,
        source: str | Path | Config,
        workdir: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        restart: bool = False,
        poll: Callable[[], None] = lambda: None,
    ):
        given = [(key, str(value)) for key, value in (overrides or {}).items()]
        if isinstance(source, Config):
            if workdir is None:
                raise ConfigError("a Run of a Config needs a workdir")
            values = loading.to_config_dict(source)
            loading.override(values, given)
        else:
            values = loading.load_config_dict(str(source), given)
            workdir = workdir or Path("runs") / Path(source).stem
        self.cfg = config.resolve(loading.from_config_dict(values))
        if self.cfg.arms:
            raise ConfigError("config.arms: a Run is a single one; p2o_jax.main compares several")
        self.workdir = Path(workdir)
        self._restart, self._poll = restart, poll
        self._stop = False
        self._stack = contextlib.ExitStack()
        self._components: Components | None = None
        self._state: RunState | None = None
        self._on_metrics: OnMetrics = lambda step, values: None

    def train(self, on_metrics: OnMetrics | None = None) -> "RunState":
        """Trains to the end, or until `stop` is called; resumes if there is a checkpoint.

        Args:
            on_metrics: called with (step, metrics) after every step, prompt phase and evaluation,
                once they are recorded.

        Returns:
            The last state. At the end of the run result.json is written, too.

        Raises:
            ConfigError: anything wrong with settings, data or model.
            Preempted: `poll` raised it; the state is saved.
        """
        from p2o_jax import train
        from p2o_jax.runtime import distributed
        from p2o_jax.startup import session
        from p2o_jax.tracking import results

        self.close()
        self._state = None  # frees its arrays before those of the checkpoint are loaded
        self._stop, self._on_metrics = False, on_metrics or (lambda step, values: None)
        with session.claimed(self.cfg, self.workdir, self._polled) as reporter:
            components = self._make(reporter)
            try:
                with session.opened(components):
                    self._state = state = train.run(self.cfg, components)
            except _Stopped:
                self._state = components.checkpoints.last
                return self.state
            if distributed.is_main_process():
                results.write_one(self.workdir, components.model.directory, state.ledger)
        return state

    def stop(self) -> None:
        """Makes `train` return before its next step, with its state saved; `train` continues it.

        To be called from `on_metrics`, or from another thread.
        """
        self._stop = True

    @property
    def state(self) -> "RunState":
        """The state of the run: the last one of `train`, else its newest checkpoint's.

        Opens the run if it is not open.
        """
        if self._state is None:
            self._opened()
        assert self._state is not None
        return self._state

    @property
    def components(self) -> "Components":
        """The parts of the run, such as model, learner and sampler. Opens the run."""
        return self._opened()

    def evaluate(self) -> dict[str, float]:
        """The metrics of the held-out questions in the current state; nothing is recorded."""
        components = self._opened()
        if not components.evaluation.questions:
            raise ConfigError("config.data.eval_path is empty: there are no held-out questions")
        weights = components.weights(self.state)
        return components.evaluation.run(weights, self.state.best_template)[0]

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: one for each step, prompt phase and evaluation."""
        return self._rows("metrics")

    def samples(self) -> list[dict[str, Any]]:
        """The rows of samples.jsonl: some rollouts of each step, with their question and score."""
        return self._rows("samples")

    def templates(self) -> list[dict[str, Any]]:
        """The rows of templates.jsonl: what every prompt phase proposed."""
        return self._rows("templates")

    def evaluations(self) -> list[dict[str, Any]]:
        """The rows of evaluations.jsonl."""
        return self._rows("evaluations")

    def result(self) -> dict[str, Any]:
        """What result.json holds once the run has ended: accuracies, tokens, seconds."""
        return json.loads((self.workdir / "result.json").read_text(encoding="utf-8"))

    def close(self) -> None:
        """Writes what is pending, stops the workers, and gives up the lock of the directory."""
        self._components = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rows(self, name: str) -> list[dict[str, Any]]:
        from p2o_jax.tracking.record_rows import read_strict

        return read_strict(self.workdir / f"{name}.jsonl")

    def _opened(self) -> "Components":
        from p2o_jax.startup import session

        if self._components is None:
            with contextlib.ExitStack() as stack:
                claim = session.claimed(self.cfg, self.workdir, self._poll)
                reporter = stack.enter_context(claim)
                components = stack.enter_context(session.opened(self._make(reporter)))
                self._state = None  # frees its arrays before those of the checkpoint are loaded
                self._state = components.read_state()
                self._components, self._stack = components, stack.pop_all()
        return self._components

    def _make(self, reporter: "Reporter") -> "Components":
        from p2o_jax.startup.components import Components

        restart, self._restart = self._restart, False  # only once
        return Components(self.cfg, self.workdir, reporter, restart, writers=[_Callback(self)])

    def _polled(self) -> None:
        self._poll()
        if self._stop:
            raise _Stopped


class _Stopped(preemption.Preempted):
    """`Run.stop` was called."""


class _Callback:
    """The writer that hands metrics to `on_metrics`."""

    def __init__(self, run: Run):
        self._run = run

    def metrics(self, tick: int, step: int, values: Mapping[str, float]) -> None:
        self._run._on_metrics(step, values)

    def rows(self, name: str, tick: int, rows: "Rows") -> None:
        pass

    def close(self) -> None:
        pass
