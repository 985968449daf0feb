"""How a command holds a training run: its directory is locked, its parts are closed, its state is
saved when it is left early.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from p2o_jax.config import Config
from p2o_jax.runtime import distributed, liveness, preemption
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup import run_directory
from p2o_jax.startup.loop_components import LoopComponents

C = TypeVar("C", bound=LoopComponents)


@contextlib.contextmanager
def claimed(cfg: Config, workdir: Path, poll: Callable[[], None]) -> Iterator[Reporter]:
    """Starts JAX as the config says and locks the run directory; yields the run's reporter.

    `poll` raises Preempted where the run is to be left.

    Raises:
        ConfigError: another process is at work in the directory.
    """
    distributed.start(cfg.mesh, cfg.train.compile_cache)
    reporter = Reporter(enabled=distributed.is_main_process(), poll=poll)
    reporter.line(f"--- {workdir}")
    with run_directory.claim(workdir, cfg.checkpoint.path):
        yield reporter


@contextlib.contextmanager
def opened(components: C) -> Iterator[C]:
    """Prepares the parts of a run and closes them at the end; saves its state if it is left early.

    After a failure of one process of several nothing is closed: the others may not come to where
    checkpoints are closed together.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(components.close)
        try:
            components.prepare()
            components.reporter.line(components.describe())
            yield components
        except preemption.Preempted:
            components.save_last()
            raise
        except Exception:
            if liveness.joined():
                stack.pop_all()
            raise
