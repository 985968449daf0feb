"""Supervised warm-up: `python -m p2o_jax.sft --config configs/sft.py`.

Trains on rows with responses (questions with answers, or chats that end with the assistant's
message) before reinforcement learning. A run directory that holds a checkpoint is resumed.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from p2o_jax import config
from p2o_jax.config import ConfigError, loading
from p2o_jax.config.command_line import CommandLine, Flag, Switch
from p2o_jax.main import any_process, command
from p2o_jax.runtime import preemption
from p2o_jax.state import SftState

if TYPE_CHECKING:
    from p2o_jax.startup.sft_components import SftComponents

COMMAND_LINE = CommandLine(
    "p2o_jax.sft",
    __doc__,
    Flag("config", "Config file", required=True, metavar="FILE.py"),
    Flag("workdir", "Run directory (default: runs/NAME_OF_CONFIG)", metavar="DIR"),
    Switch("restart", "Begin anew; the records so far move to WORKDIR/previous-1"),
)


def run(components: "SftComponents") -> SftState:
    """Trains until the epochs are over; resumes from the newest checkpoint if there is one."""
    state = components.open_state(lambda state: state.step >= components.num_steps)
    while state.step < components.num_steps:
        if components.is_evaluation_due(state.step):
            state = evaluate(components, state)
        before, state = state, update(components, state)
        components.checkpoints.save_if_due(before, state)
    components.checkpoints.save(state)
    return evaluate(components, state)


def update(components: "SftComponents", state: SftState) -> SftState:
    """The state after one optimizer update on the next batch of rows."""
    examples = components.examples(components.questions.batch(state.step))
    with components.reporter.phase("update"):
        learner, values = components.learner.update(state.learner, examples)
    ledger = state.ledger.plus(components.costs(examples))
    after = replace(state, learner=learner, step=state.step + 1, ledger=ledger)
    components.record.step(state, after, values, components.num_steps)
    return after


def evaluate(components: "SftComponents", state: SftState) -> SftState:
    """The state with evaluation on the ledger; the loss on held-out rows is recorded."""
    if not components.heldout_sets:
        return state
    values, spent = components.evaluate(state)
    after = replace(state, ledger=state.ledger.add("eval", **spent))
    components.record.evaluation(after, values)
    components.checkpoints.save_if_best(state, math.exp(-values["eval/nll"]))
    return after


def main(argv: Sequence[str]) -> None:
    """Runs the command line's config.

    Raises:
        ConfigError: anything wrong with flags, config, data or model.
        Preempted: after SIGTERM, with the state of the run saved.
    """
    flags, overrides = COMMAND_LINE.parse(argv)
    cfg = config.resolve(loading.load(flags["config"], overrides))
    if cfg.arms:
        raise ConfigError("config.arms: supervised training is a single run")
    cfg = replace(cfg, gepa=replace(cfg.gepa, enabled=False))  # and so are the rules about it
    workdir = Path(flags["workdir"] or Path("runs") / Path(flags["config"]).stem)
    # before JAX, whose import takes seconds
    with preemption.Preemption(cfg.checkpoint.grace_s, any_process) as watch:
        from p2o_jax.runtime import distributed
        from p2o_jax.startup import session
        from p2o_jax.startup.sft_components import SftComponents
        from p2o_jax.tracking import results

        with session.claimed(cfg, workdir, watch.poll) as reporter:
            components = SftComponents(cfg, workdir, reporter, flags["restart"])
            with session.opened(components):
                state = run(components)
            if distributed.is_main_process():
                results.write_one(workdir, components.model.directory, state.ledger)
                results.print_next(workdir)


if __name__ == "__main__":
    command(main)
