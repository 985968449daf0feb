"""Plans: `python -m p2o_jax.plan --config C --topology v5p:4x4x4[,slices=2] [--model qwen3-4b|DIR]
[--config.a.b=value ...]`.

Compiles the config's programs (update, scoring, prefill, decoding, laying out) for TPUs that are
not there, and prints for a chip what lies in its memory while each runs, what a policy step
exchanges with other chips, and how long a step would take at best. Nothing is run. Needs libtpu
(`pip install 'jax[tpu]'`, an environment of its own will do) and no TPU.

    --prompt, --response   mean tokens of a prompt and of a response (512; half of config.rollout.max_new_tokens)
    --questions            questions in an epoch, over which a prompt phase is spread (5000)
    --price                dollars for a chip and hour
    --out FILE.json        the same as JSON
    --picture FILE.svg     a chip's memory as a picture
    --sweep fsdp,tensor,remat,batch,cache   tries other values of these, ranks what fits and says why the rest does not
    --jobs                 programs compiled at a time (1); each takes a core and, for 32 billion parameters, 5 GB
    --quick true           compiles the sampler for two and four layers only and carries on from there: half of the time
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# the compiler wants no TPU, and JAX is not to look for one
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from p2o_jax import config
from p2o_jax.config import ConfigError, loading
from p2o_jax.config.ranges import COUNT, Range
from p2o_jax.main import command
from p2o_jax.runtime import files

FLAGS = {
    "config": None,
    "topology": None,
    "model": "",
    "prompt": "512",
    "response": "",
    "questions": "5000",
    "jobs": "1",
    "quick": "false",
} | dict.fromkeys(("price", "out", "picture", "sweep"), "")


def run(argv: Sequence[str]) -> None:
    """Prints the plan, or the sweep, that the command line asks for.

    Raises:
        ConfigError: wrong flags, config or model; no libtpu.
    """
    flags, overrides = loading.parse_flags(argv, FLAGS)
    cfg = config.resolve(loading.load(flags["config"], overrides))
    out, picture_file = (_file(flags, name) for name in ("out", "picture"))

    from p2o_jax.plan import chips, picture, planner, programs, report, sweep
    from p2o_jax.plan.estimate import Workload

    if flags["quick"] not in ("true", "false"):
        raise ConfigError(f"--quick={flags['quick']}: expected true or false")
    flags["response"] = flags["response"] or str(max(cfg.rollout.max_new_tokens // 2, 1))
    wanted = dict.fromkeys(("prompt", "response", "questions", "jobs"), (int, COUNT))
    given = loading.numbers(
        flags, wanted | ({"price": (float, Range(gt=0, le=1e6))} if flags["price"] else {})
    )
    how = programs.How(given["jobs"], flags["quick"] == "true")
    topology = chips.parse(flags["topology"])
    name = flags["model"] or cfg.model.path
    work = Workload(given["prompt"], given["response"], given["questions"])
    case = planner.Case(name, programs.model_spec(name), cfg, topology, work, given.get("price"))
    if flags["sweep"]:
        figures = sweep.run(case, flags["sweep"].split(","), _tell, how)
        print(sweep.as_text(figures))
    else:
        figures = planner.plan(case, _tell, how=how)
        print(report.as_text(figures))
        if picture_file:
            picture.draw(figures, picture_file)
    if out:
        files.write_json(out, figures)


def _file(flags: dict[str, str], name: str) -> Path | None:
    path = Path(flags[name])
    problems = files.conflicts(f"--{name}", path) if flags[name] else []
    if flags[name] and not path.parent.is_dir():
        problems.append(f"--{name}={path}: no such directory: {path.parent}")
    if problems:
        raise ConfigError(*problems)
    return path if flags[name] else None


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command(run)
