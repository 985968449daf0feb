"""Trains: `python -m p2o_jax.main --config configs/quickstart.py [--workdir runs/quickstart] [--restart] [--config.a.b=value ...]`.

A workdir that holds a checkpoint is resumed. With --restart the run begins anew, and the records so far are kept in
WORKDIR/previous-1. A config with `arms` runs each of them in a folder of its own and compares them.
"""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would tell that there is no PyTorch
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from p2o_jax import config, config_files, guards, peers
from p2o_jax.config import Config, ConfigError
from p2o_jax.progress import Reporter, printable

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def main(argv: Sequence[str]) -> None:
    """Runs the command line's config.

    Raises:
        ConfigError: anything wrong with flags, config, data or model.
        Preempted: after SIGTERM, with the state of the run saved.
    """
    flags, overrides = config_files.parse_flags(argv, {"config": None, "workdir": ""}, ("restart",))
    values = config_files.load_config_dict(flags["config"], overrides)
    cfg = config.resolve(config_files.from_config_dict(values))
    workdir = Path(flags["workdir"] or Path("runs") / Path(flags["config"]).stem)
    restart = bool(flags["restart"])
    with guards.Preemption(cfg.checkpoint.grace_s, _on_any) as preemption:  # before JAX, whose import takes seconds
        if not cfg.arms:
            train_one(cfg, workdir, preemption.poll, restart)
            return
        from p2o_jax import compare, run_directory

        arms = {name: config.resolve(arm) for name, arm in config_files.arms(values).items()}
        check_arms(arms)
        with run_directory.claim(workdir):
            for name, arm in arms.items():
                train_one(arm, workdir / name, preemption.poll, restart)
            if restart:
                run_directory.put_away_comparison(workdir)
            compare.write(workdir, list(arms))


def _on_any(holds: bool) -> bool:
    from p2o_jax import runtime

    return runtime.on_any(holds)


def check_arms(arms: Mapping[str, Config]) -> None:
    """Raises a ConfigError with what is wrong with the settings of any arm, before the first is run."""
    from p2o_jax import config_rules, runtime

    found = []
    for name, arm in arms.items():
        num_devices = runtime.start(arm.mesh, arm.train.compile_cache)
        if arm.checkpoint.path:
            found.append(f"config.arms, {name}: config.checkpoint.path must be empty: arms would share one folder")
        found += [f"config.arms, {name}: {line}" for line in config_rules.problems(arm, num_devices)]
    if found:
        raise ConfigError(*found)


def train_one(cfg: Config, workdir: Path, poll: Callable[[], None], restart: bool = False) -> None:
    """Trains one run to its end and writes its result.json. `poll` raises Preempted where the run is to be left.

    With `restart` it begins anew, and the records of the run in `workdir` are moved away.

    Raises:
        Preempted: with the state of the run saved.
    """
    from p2o_jax import build, compare, run_directory, runtime, train

    runtime.start(cfg.mesh, cfg.train.compile_cache)
    reporter = Reporter(enabled=runtime.is_main_process(), poll=poll)
    reporter.line(f"--- {workdir}")
    with run_directory.claim(workdir, cfg.checkpoint.path):
        parts = build.Parts(cfg, workdir, reporter, restart)
        reporter.line(build.describe(parts))
        with contextlib.ExitStack() as stack:
            stack.callback(parts.close)
            try:
                state = train.run(cfg, parts)
            except guards.Preempted:
                parts.checkpoints.save_last()
                raise
            except Exception:
                if peers.joined():
                    stack.pop_all()  # the others may not come to where checkpoints are closed together
                raise
        if runtime.is_main_process():
            compare.write_one(workdir, parts.model.directory, state.ledger)


def command(run: Callable[[Sequence[str]], None]) -> None:
    """Runs a command; what the user can mend is told in one line each, with exit code 2 and no traceback.

    One of several processes that fails ends at once, without clean-up, and tells the others why.
    """
    if any(flag in ("-h", "--help") for flag in sys.argv[1:]):
        try:
            print((sys.modules["__main__"].__doc__ or "").strip())
            print("\nEvery setting, with its unit and default, stands in p2o_jax/config.py.", flush=True)
        except BrokenPipeError:  # `--help | head`: nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    again = "the same command without --restart" if "--restart" in sys.argv[1:] else "the same command"
    try:
        run(sys.argv[1:])
    except guards.Preempted:
        print(f"left on SIGTERM; {again} goes on", file=sys.stderr)
        peers.leave_at_once(0)
    except KeyboardInterrupt:
        print(f"interrupted (a training run goes on from its last checkpoint by {again})", file=sys.stderr)
        peers.leave_at_once(130)
        peers.stop(130, "interrupted")
    except peers.Missing as e:
        print(f"error: {printable(str(e))}", file=sys.stderr)
        sys.exit(peers.GONE)
    except Exception as e:
        peers.wait_for_news()
        lines = mendable(e)
        if not lines and not peers.joined():
            raise
        for line in lines or traceback.format_exception(e):
            print(f"error: {printable(line)}" if lines else line, file=sys.stderr)
        peers.stop(2 if lines else 1, lines[0] if lines else f"{type(e).__name__}: {e}")


def mendable(e: Exception) -> list[str]:
    """What the user can mend, a line each; nothing if the fault is ours."""
    if isinstance(e, ConfigError):
        return list(e.problems)
    if isinstance(e, OSError) and e.errno in DISK_ERRORS:
        return [f"{e.filename or 'a file'} could not be written: {e.strerror} (the same command goes on)"]
    return []


if __name__ == "__main__":
    command(main)
