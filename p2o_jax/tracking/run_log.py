"""The open records of a run: every writer, and the clock."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from p2o_jax.runtime.console import Reporter
from p2o_jax.tracking import jsonl
from p2o_jax.tracking.clock import Clock
from p2o_jax.tracking.metric_names import is_known
from p2o_jax.tracking.writers import JsonlWriter, Rows, TensorboardWriter, Writer


class RunLog:
    """Hands records to JSONL files, TensorBoard and further writers. Only the main process has one.

    `tick` says which rows a checkpoint has seen: on resume later rows are cut off, so that no row
    is there twice or missing.
    """

    def __init__(
        self,
        workdir: Path,
        tick: int,
        step: int,
        reporter: Reporter,
        further: Sequence[Writer] = (),
    ):
        """Opens the records of a run that continues at this tick and step, and cuts off its rows of
        that tick or later.

        Rows before that which are missing or damaged are reported: a kill leaves no such gap, but a
        power cut or another program may.

        Args:
            workdir: the run directory.
            tick: of the state that the run continues from.
            step: policy steps at that tick.
            reporter: receives the lines, and knows when the run began.
            further: writers besides JSONL and TensorBoard.
        """
        # pretraining is no part of the run
        self.clock = Clock(workdir, reporter.begin + reporter.seconds.get("pretraining", 0.0))
        paths = {name: workdir / f"{name}.jsonl" for name in jsonl.FILES}
        ticks = {name: jsonl.cut(path, tick, reporter.line) for name, path in paths.items()}
        if missing := sorted(set(range(tick)) - ticks["metrics"]):
            reporter.line(
                f"{paths['metrics']}: there are no rows of the ticks"
                f" {missing[:20]}{' ...' if missing[20:] else ''}"
            )
        self.writers: list[Writer] = [
            JsonlWriter(workdir),
            TensorboardWriter(workdir, step),
            *further,
        ]

    def metrics(self, tick: int, step: int, values: Mapping[str, float]) -> None:
        """Hands a row of metrics to every writer."""
        unknown = sorted(name for name in values if not is_known(name))
        assert not unknown, f"not in metrics.METRICS: {unknown}"
        for writer in self.writers:
            writer.metrics(tick, step, values)

    def rows(self, name: str, tick: int, rows: Rows) -> None:
        """Hands rows of NAME.jsonl to every writer."""
        for writer in self.writers:
            writer.rows(name, tick, rows)

    def close(self) -> None:
        """Writes what is pending, and the clock."""
        self.clock.write()
        for writer in self.writers:
            writer.close()
