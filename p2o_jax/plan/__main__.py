"""Plans a run: `python -m p2o_jax.plan --config C --topology v5p:4x4x4[,slices=2]`.

Compiles the config's programs (update, scoring, prefill, decoding, resharding) with the real TPU
compiler, without a TPU and without running them. Prints the memory of a chip while each program
runs, the data that a policy step exchanges with other chips, and a lower bound on the step time.
Needs libtpu (`pip install 'jax[tpu]'`, for example in an environment of its own).
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The compiler needs no TPU, and JAX must not look for one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from p2o_jax import config
from p2o_jax.config import ConfigError, loading
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT, Range
from p2o_jax.main import command
from p2o_jax.runtime import files

COMMAND_LINE = CommandLine(
    "p2o_jax.plan",
    __doc__,
    Flag("config", "Config file", required=True, metavar="FILE.py"),
    Flag(
        "topology",
        "Kind of TPU and shape of a slice, e.g. v5p:4x4x4; ,slices=N for several slices",
        required=True,
        metavar="KIND:SHAPE[,slices=N]",
    ),
    Flag(
        "model",
        "Name of a known model, e.g. qwen3-4b, or a Hugging Face directory (default:"
        " config.model.path)",
        metavar="NAME|DIR",
    ),
    Flag("prompt", "Mean tokens of a prompt", 512, kind=int, within=COUNT),
    Flag(
        "response",
        "Mean tokens of a response (default: half of config.rollout.max_new_tokens)",
        None,
        kind=int,
        within=COUNT,
    ),
    Flag(
        "questions",
        "Questions in an epoch, over which the cost of a prompt phase is spread",
        5000,
        kind=int,
        within=COUNT,
    ),
    Flag("price", "Dollars per chip and hour", None, kind=float, within=Range(gt=0, le=1e6)),
    Flag("out", "Also write the figures as JSON", metavar="FILE.json"),
    Flag("picture", "Also draw a chip's memory", metavar="FILE.svg"),
    Flag(
        "sweep",
        "Settings to vary, some of fsdp,tensor,remat,batch,cache: ranks what fits, and gives the"
        " reason for what does not",
        metavar="NAMES",
    ),
    Flag(
        "jobs",
        "Programs compiled at a time; each takes a core and, for 32 billion parameters, 5 GB",
        1,
        kind=int,
        within=COUNT,
    ),
    Flag(
        "quick",
        "Compile the sampler with two and with four layers only, and extrapolate: half the time",
        False,
        kind=bool,
    ),
)


def run(argv: Sequence[str]) -> None:
    """Prints a plan or a sweep.

    Raises:
        ConfigError: invalid flags, config or model, or no libtpu.
    """
    flags, overrides = COMMAND_LINE.parse(argv)
    cfg = config.resolve(loading.load(flags["config"], overrides))
    out, picture_file = (_file(flags, name) for name in ("out", "picture"))

    from p2o_jax.plan import chips, picture, planner, programs, report, sweep
    from p2o_jax.plan.estimate import Workload

    options = programs.CompileOptions(flags["jobs"], flags["quick"])
    topology = chips.parse(flags["topology"])
    name = flags["model"] or cfg.model.path
    response = flags["response"] or max(cfg.rollout.max_new_tokens // 2, 1)
    work = Workload(flags["prompt"], response, flags["questions"])
    case = planner.Case(name, programs.model_spec(name), cfg, topology, work, flags["price"])
    if flags["sweep"]:
        figures = sweep.run(case, flags["sweep"].split(","), _log, options)
        print(sweep.as_text(figures))
    else:
        figures = planner.plan(case, _log, options=options)
        print(report.as_text(figures))
        if picture_file:
            picture.draw(figures, picture_file)
    if out:
        files.write_json(out, figures)


def _file(flags: dict[str, Any], name: str) -> Path | None:
    path = Path(flags[name])
    problems = files.conflicts(f"--{name}", path) if flags[name] else []
    if flags[name] and not path.parent.is_dir():
        problems.append(f"--{name}={path}: no such directory: {path.parent}")
    if problems:
        raise ConfigError(*problems)
    return path if flags[name] else None


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command(run)
