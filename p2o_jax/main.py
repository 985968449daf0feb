"""Trains: `python -m p2o_jax.main --config configs/quickstart.py [--workdir runs/quickstart] [--config.a.b=value ...]`.

A workdir that holds a checkpoint is resumed. A config with `arms` runs each of them in a folder of its own and compares them.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would tell that there is no PyTorch
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from p2o_jax import config, config_files
from p2o_jax.config import Config, ConfigError


def main(argv: Sequence[str]) -> None:
    """Runs the command line's config.

    Raises:
        ConfigError: anything wrong with flags, config, data or model.
    """
    flags, overrides = config_files.parse_flags(argv, {"config": None, "workdir": ""})
    values = config_files.load_config_dict(flags["config"], overrides)
    cfg = config.resolve(config_files.from_config_dict(values))
    workdir = Path(flags["workdir"] or Path("runs") / Path(flags["config"]).stem)
    if not cfg.arms:
        train_one(cfg, workdir)
        return
    from p2o_jax import compare

    arms = config_files.arms(values)
    start = time.monotonic()
    for name, arm in arms.items():
        train_one(config.resolve(arm), workdir / name)
    compare.write(workdir, list(arms), time.monotonic() - start)


def train_one(cfg: Config, workdir: Path) -> None:
    """Trains one run to its end and writes its result.json."""
    import jax

    from p2o_jax import build, compare, runtime, train
    from p2o_jax.progress import Reporter

    if cfg.mesh.cpu_devices:
        runtime.split_cpu(cfg.mesh.cpu_devices)
    if cfg.train.compile_cache:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(cfg.train.compile_cache))
    reporter = Reporter(enabled=runtime.is_main_process())
    reporter.line(f"--- {workdir}")
    start = time.monotonic()
    parts = build.Parts(cfg, workdir, reporter)
    reporter.line(build.describe(parts))
    try:
        train.run(cfg, parts)
    finally:
        parts.close()
    if runtime.is_main_process():
        compare.write_one(workdir, parts.model.directory, time.monotonic() - start)


def command(run: Callable[[Sequence[str]], None]) -> None:
    """Runs a command; what the user can mend is told in one line each, with exit code 2 and no traceback."""
    try:
        run(sys.argv[1:])
    except ConfigError as e:
        for line in e.problems:
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    command(main)
