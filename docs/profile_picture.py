"""Profiles a training command on the CPU and draws the time of each named scope.

`python -m docs.profile_picture DIR --config configs/smoke.py [--config.a.b=value ...]` trains in
DIR/run with JAX's profiler on, and writes DIR/trace (open it with TensorBoard or XProf),
DIR/scopes.json and DIR/profile.png.

An operation counts for the innermost named scope that its HLO instruction carries. Traces of the
CPU name instructions only, so XLA dumps the compiled programs, which have the scopes (DIR/hlo).
"""

import collections
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PHASES = ("prefill", "decode", "score", "update")
BLOCKS = ("embed", "attention", "mlp", "lm_head", "logprobs", "sample", "optimizer")
# Programs and scopes that are part of a phase or block under another name.
ALIASES = {
    "extend": "prefill",
    "decode_chunk": "decode",
    "decode_step": "decode",
    "sample_token": "sample",
}
CONTROL_FLOW = ("while", "call", "conditional")  # their time is that of what they call

Scope = tuple[str, str]  # phase and block; "other" where there is none
Operation = tuple[int, str, float]  # program, instruction, seconds


def main(argv: Sequence[str]) -> None:
    """Trains under the profiler, and writes the figures and the picture."""
    folder = Path(argv[0])
    hlo = folder / "hlo"
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={hlo} --xla_dump_hlo_as_text"
    )
    trace = record([*argv[1:], "--workdir", str(folder / "run")], folder / "trace")
    seconds = by_scope(operations(trace), op_names(hlo))
    rows = {f"{phase}/{block}": round(s, 4) for (phase, block), s in seconds.items()}
    (folder / "scopes.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    draw(seconds, folder / "profile.png")
    print(folder / "profile.png")


def record(flags: Sequence[str], folder: Path) -> Path:
    """The trace of a training command, which runs in this process."""
    import jax

    from p2o_jax import main as train

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        # Programs from the compilation cache would not be dumped.
        train.main([*flags, "--config.train.compile_cache="])
    return max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)


def operations(trace: Path) -> Iterable[Operation]:
    """The operations of compiled programs in a trace, without control flow."""
    import jax

    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                name = str(stats.get("hlo_op", ""))
                if name and not name.startswith(CONTROL_FLOW):
                    yield int(stats["program_id"]), name, event.duration_ns / 1e9


def op_names(folder: Path) -> dict[tuple[int, str], str]:
    """The `op_name` of each instruction of the dumped programs, by program and instruction."""
    names = {}
    for path in folder.glob("module_*after_optimizations.txt"):
        program = int(path.name.split(".")[0].removeprefix("module_"))
        for instruction, name in instructions(path.read_text(encoding="utf-8")):
            names[program, instruction] = name
    return names


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a program as HLO text that have an `op_name`, with it."""
    return re.findall(r'(?m)^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', text)


def by_scope(
    operations: Iterable[Operation], names: Mapping[tuple[int, str], str]
) -> dict[Scope, float]:
    """Seconds of each phase and block. An instruction without a name, such as a copy that the
    compiler added, counts for the most common phase of its program.
    """
    phases: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for (program, _), name in names.items():
        phases[program][scope(name)[0]] += 1
    seconds: dict[Scope, float] = collections.defaultdict(float)
    for program, instruction, duration in operations:
        name = names.get((program, instruction))
        if name:
            seconds[scope(name)] += duration
        else:
            common = phases[program].most_common(1)
            seconds[common[0][0] if common else "other", "other"] += duration
    return dict(seconds)


def scope(op_name: str) -> Scope:
    """The innermost phase and block in an `op_name`, such as jit(f)/update/jvp(mlp)/dot."""
    words = [ALIASES.get(word, word) for word in re.findall(r"\w+", op_name)]
    innermost = [
        next((word for word in reversed(words) if word in known), "other")
        for known in (PHASES, BLOCKS)
    ]
    return innermost[0], innermost[1]


def draw(seconds: Mapping[Scope, float], path: Path) -> None:
    """Draws a bar for each phase, divided into blocks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    phases = [phase for phase in (*PHASES, "other") if any(p == phase for p, _ in seconds)]
    figure, axes = pyplot.subplots(figsize=(9, 3.2), layout="constrained")
    left = [0.0] * len(phases)
    for index, block in enumerate((*BLOCKS, "other")):
        widths = [seconds.get((phase, block), 0.0) for phase in phases]
        if any(widths):
            color = "lightgray" if block == "other" else f"C{index}"
            axes.barh(phases, widths, left=left, label=block, color=color)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds of operations, summed over threads")
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
