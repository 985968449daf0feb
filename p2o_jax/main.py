"""Trains a policy: `python -m p2o_jax.main --config configs/quickstart.py`.

A run directory that holds a checkpoint is resumed. A config with `arms` runs each of them in a
folder of its own and compares them.
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would report that there is no PyTorch
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from p2o_jax import config
from p2o_jax.config import Config, ConfigError, loading
from p2o_jax.config.command_line import CommandLine, Flag, Switch
from p2o_jax.runtime import liveness, preemption
from p2o_jax.runtime.console import printable

COMMAND_LINE = CommandLine(
    "p2o_jax.main",
    __doc__,
    Flag("config", "Config file", required=True, metavar="FILE.py"),
    Flag("workdir", "Run directory (default: runs/NAME_OF_CONFIG)", metavar="DIR"),
    Switch("restart", "Begin anew; the records so far move to WORKDIR/previous-1"),
)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def main(argv: Sequence[str]) -> None:
    """Runs the command line's config.

    Raises:
        ConfigError: anything wrong with flags, config, data or model.
        Preempted: after SIGTERM, with the state of the run saved.
    """
    flags, overrides = COMMAND_LINE.parse(argv)
    values = loading.load_config_dict(flags["config"], overrides)
    cfg = config.resolve(loading.from_config_dict(values))
    workdir = Path(flags["workdir"] or Path("runs") / Path(flags["config"]).stem)
    restart = flags["restart"]
    print(f"{workdir}: loading JAX, data and model", file=sys.stderr, flush=True)
    with preemption.Preemption(
        cfg.checkpoint.grace_s, any_process
    ) as watch:  # before JAX, whose import takes seconds
        if not cfg.arms:
            train_one(cfg, workdir, watch.poll, restart)
            print_next(workdir)
            return
        from p2o_jax.startup import run_directory
        from p2o_jax.tracking import results

        arms = {name: config.resolve(arm) for name, arm in loading.arms(values).items()}
        check_arms(arms)
        with run_directory.claim(workdir):
            open_arms(arms, workdir, restart)
            for name, arm in arms.items():
                train_one(arm, workdir / name, watch.poll, restart)
            if restart:
                run_directory.put_away_comparison(workdir)
            results.write(workdir, list(arms))
        print_next(workdir, *(workdir / name for name in arms))


def print_next(workdir: Path, *runs: Path) -> None:
    """Prints on the main process what came out of a run and what to do next."""
    from p2o_jax.runtime import distributed
    from p2o_jax.tracking import results

    if distributed.is_main_process():
        results.print_next(workdir, *runs)


def any_process(holds: bool) -> bool:
    """Whether this holds on any process of the run."""
    from p2o_jax.runtime import distributed

    return distributed.any_process(holds)


def check_arms(arms: Mapping[str, Config]) -> None:
    """Raises a ConfigError with what is wrong with the settings of any arm, before the first is
    run.
    """
    from p2o_jax.config import rules
    from p2o_jax.runtime import distributed

    problems = []
    for name, arm in arms.items():
        num_devices = distributed.start(arm.mesh, arm.train.compile_cache)
        if arm.checkpoint.path:
            problems.append(
                f"config.arms, {name}: config.checkpoint.path must be empty: arms would share one"
                " folder"
            )
        problems += [f"config.arms, {name}: {line}" for line in rules.problems(arm, num_devices)]
    if problems:
        raise ConfigError(*problems)


def open_arms(arms: Mapping[str, Config], workdir: Path, restart: bool) -> None:
    """Raises a ConfigError with what is wrong with the data or model of any arm, before the first
    is run. The built-in world's are made for it.
    """
    from p2o_jax.runtime.console import Reporter
    from p2o_jax.startup import preflight, run_directory
    from p2o_jax.startup.model import WORLD

    problems = []
    for name, arm in arms.items():
        if arm.model.path == WORLD:
            continue
        directory = run_directory.read(workdir / name, restart=restart)
        try:
            preflight.open_run(arm, directory, Reporter(enabled=False))
        except ConfigError as e:
            problems += [f"config.arms, {name}: {line}" for line in e.problems]
    if problems:
        raise ConfigError(*problems)


def train_one(cfg: Config, workdir: Path, poll: Callable[[], None], restart: bool = False) -> None:
    """Trains one run to its end and writes its result.json.

    Args:
        cfg: its resolved config.
        workdir: its directory.
        poll: raises Preempted where the run is to be left.
        restart: begin anew, and move the records of the run in `workdir` away.

    Raises:
        Preempted: with the state of the run saved.
    """
    from p2o_jax.run import Run

    with Run(cfg, workdir, restart=restart, poll=poll) as run:
        run.train()


def command(run: Callable[[Sequence[str]], None]) -> None:
    """Runs a command. Errors that the user can fix are printed in one line each, without a
    traceback, and end it with exit code 2.

    One of several processes that fails ends at once, without clean-up, and reports the reason to
    the others.
    """
    again = (
        "the same command without --restart" if "--restart" in sys.argv[1:] else "the same command"
    )
    try:
        run(sys.argv[1:])
    except preemption.Preempted:
        print(f"left on SIGTERM; {again} continues", file=sys.stderr)
        liveness.leave_at_once(0)
    except KeyboardInterrupt:
        print(
            f"interrupted ({again} continues a training run from its last checkpoint)",
            file=sys.stderr,
        )
        liveness.leave_at_once(130)
        liveness.stop(130, "interrupted")
    except liveness.Missing as e:
        print(f"error: {printable(str(e))}", file=sys.stderr)
        sys.exit(liveness.GONE)
    except Exception as e:
        liveness.wait_for_news()
        lines = fixable(e)
        if not lines and not liveness.joined():
            raise
        for line in lines or traceback.format_exception(e):
            print(f"error: {printable(line)}" if lines else line, file=sys.stderr)
        liveness.stop(2 if lines else 1, lines[0] if lines else f"{type(e).__name__}: {e}")


def fixable(e: Exception) -> list[str]:
    """What the user can fix, a line each; nothing if the fault is ours."""
    if isinstance(e, ConfigError):
        return list(e.problems)
    if isinstance(e, OSError) and e.errno in DISK_ERRORS:
        return [
            f"{e.filename or 'a file'} could not be written: {e.strerror} (the same command"
            " continues)"
        ]
    return []


if __name__ == "__main__":
    command(main)
