"""What supervised training records."""

from p2o_jax.state import SftState
from p2o_jax.tracking.metric_names import ledger_metrics
from p2o_jax.tracking.recorder import LoopRecorder, step_seconds


class SftRecorder(LoopRecorder):
    """Records the steps and evaluations of supervised training."""

    def step(
        self, before: SftState, after: SftState, values: dict[str, float], num_steps: int
    ) -> None:
        """A step's metrics and line."""
        self.alive()
        values = {**values, **self.times(), "perf/compiles": self.compiles.count}
        values["ledger/flops"] = after.ledger.total("flops")
        tokens_per_s = values["train/trained_tokens"] / max(values["time/update_s"], 1e-9)
        self.reporter.line(
            f"step {after.step}/{num_steps}  loss {values['train/loss']:.4f}  grad norm"
            f" {values['train/grad_norm']:.2f}  {tokens_per_s:,.0f} trained tokens/s"
            f"  {step_seconds(values)}  {self.pace.left(after.step / num_steps)}".rstrip()
        )
        if self.log:
            self.log.metrics(before.tick, before.step, values)

    def evaluation(self, state: SftState, values: dict[str, float]) -> None:
        """An evaluation's metrics and line."""
        self.alive()
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.reporter.line(f"eval at step {state.step}: {shown}")
        if self.log:
            values = {**values, **self.times(), **ledger_metrics(state.ledger)}
            self.log.metrics(state.tick, state.step, values)
