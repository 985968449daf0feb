"""Resumes runs under other settings and faults: `python -m benchmarks.resume [--pairs 200]`.

A pair is a run that stops after a few steps, and a second start in a copy of its run directory. The
settings of both are random: devices and mesh (with a vocabulary that one of them must pad), epochs,
dtype of the weights, adapters and evaluation. In some copies a byte of one or more checkpoints is
changed, and in some starts restoring raises an exception. Each second start must

- continue from the newest checkpoint with the same bits, and under the same settings end
  bit-identical to a run that was never stopped,
- or end with exit code 2 and a message, and leave every file unchanged,
- or report a damaged checkpoint and continue from the previous one.

It must never start again at step 0. The last line is JSON with the number of each outcome.
"""

import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import kill, report
from benchmarks.report import Target
from p2o_jax.config import ConfigError
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command

ROOT = Path(__file__).parent.parent
TARGETS = {
    "every start ends as it should": Target("frac_right", ">=", 1.0),
    "none begins again": Target("restarted", "<=", 0),
}
FAULT = "P2O_BENCHMARK_FAULT"  # environment variable: "COUNT MESSAGE" of the exception to raise
RESTORED = "restored"
EXCEPTIONS = {
    "out of memory": (
        "99 RESOURCE_EXHAUSTED: out of memory allocating 1073741824 bytes",
        "refused",
    ),
    "store away": ("99 503 UNAVAILABLE: the service is currently unavailable", "refused"),
    "store back": ("1 503 UNAVAILABLE: the service is currently unavailable", "continues"),
    "unknown": ("99 zstd: unexpected state", "refused"),
}
SETTINGS = {
    **kill.SETTINGS,
    "world.steps": 40,
    "gepa.enabled": "false",
    "checkpoint.every_steps": 1,
    "checkpoint.keep": 3,
    "checkpoint.keep_every": 0,
}
STOP_TOKENS, END_TOKENS = 700, 1600  # of the first start, and of the second
MESHES = ((1, 1), (2, 1), (2, 2))  # (CPU devices, tensor); two-way tensor pads the vocabulary
EPOCHS = (4, 60)  # with a warm-up of one update, and of several
DTYPES = ("float32", "bfloat16")
RANKS = (0, 2)
EVALS = (2, 3)  # eval.every_steps


class Start(NamedTuple):
    """The random settings of a start."""

    mesh: tuple[int, int]
    epochs: int
    dtype: str
    rank: int
    every: int

    def settings(self, tokens: int) -> dict[str, Any]:
        return {
            "mesh.cpu_devices": self.mesh[0],
            "mesh.tensor": self.mesh[1],
            "train.epochs": self.epochs,
            "model.param_dtype": self.dtype,
            "lora.rank": self.rank,
            "eval.every_steps": self.every,
            "train.max_generated_tokens": tokens,
        }


class Pair(NamedTuple):
    """A first and a second start, and the fault between them or in the second."""

    first: Start
    second: Start
    fault: str  # empty, "byte in the newest", "byte in all", or a key of EXCEPTIONS

    @property
    def expected(self) -> str:
        """The expected outcome of the second start."""
        if (self.first.dtype, self.first.rank) != (self.second.dtype, self.second.rank):
            return "refused"
        damage = {"byte in the newest": "falls back", "byte in all": "refused"}
        return damage.get(self.fault) or EXCEPTIONS.get(self.fault, ("", "continues"))[1]


def draw(rng: random.Random, count: int) -> list[Pair]:
    """Draws `count` pairs. Each setting of the second start sometimes differs from the first's."""
    faults = ("byte in the newest", "byte in all", *EXCEPTIONS)
    pairs = []
    for _ in range(count):
        first = Start(
            *(rng.choice(options) for options in (MESHES, EPOCHS, DTYPES, RANKS, EVALS[:1]))
        )
        chances = zip(
            first, (MESHES, EPOCHS, DTYPES, RANKS, EVALS), (0.5, 0.5, 0.08, 0.08, 0.3), strict=True
        )
        second = (
            first
            if rng.random() < 0.25
            else Start(*(rng.choice(o) if rng.random() < p else v for v, o, p in chances))
        )
        pairs.append(Pair(first, second, rng.choice(faults) if rng.random() < 0.5 else ""))
    return pairs


def child(argv: Sequence[str]) -> None:
    """Runs the training command. Prints the restored state, and raises the exception in FAULT."""
    import orbax.checkpoint as ocp

    from p2o_jax import main
    from p2o_jax.startup import components
    from p2o_jax.tracking import checkpoint_reader

    restore, open_state = ocp.CheckpointManager.restore, components.Components.open_state
    times, _, message = os.environ.get(FAULT, "0 ").partition(" ")
    left = [int(times)]

    def faulty(self: Any, *args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise Exception(message)
        return restore(self, *args, **kwargs)

    def reporting(self: Any, is_finished: Any) -> Any:
        state = open_state(self, is_finished)
        values = {"tick": state.tick, "bits": checkpoint_reader.bit_sums(state.learner)}
        os.write(1, f"{RESTORED} {json.dumps(values)}\n".encode())
        return state

    ocp.CheckpointManager.restore = faulty  # type: ignore[method-assign]
    components.Components.open_state = reporting  # type: ignore[method-assign]
    sys.argv[1:] = argv
    main.command(main.main)


def start(
    workdir: Path, settings: Mapping[str, Any], fault: str = ""
) -> tuple[int, str, dict[str, Any] | None]:
    """Exit code and standard error of a start, and the state that it restored, if any."""
    import subprocess

    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    line = [
        sys.executable,
        "-m",
        "benchmarks.resume",
        "child",
        "--config",
        "configs/smoke.py",
        "--workdir",
        str(workdir),
        *flags,
    ]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        FAULT: fault or "0 ",
    }
    done = subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    restored = [text for text in done.stdout.splitlines() if text.startswith(RESTORED)]
    state = json.loads(restored[0].removeprefix(RESTORED)) if restored else None
    return done.returncode, done.stderr + done.stdout, state


def contents(workdir: Path) -> dict[str, str]:
    """A digest of every file. A checkpoint that was moved away counts under its original name."""
    digests = {}
    for path in sorted(workdir.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(workdir)).replace("checkpoints_damaged/", "checkpoints/")
            digests[name] = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return digests


def ticks(workdir: Path) -> list[int]:
    """The ticks that have a checkpoint, newest first."""
    return sorted(
        (int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()),
        reverse=True,
    )


def change_byte(workdir: Path, tick: int, rng: random.Random) -> None:
    """Flips a bit in a file of a checkpoint that is needed for restoring."""
    step = workdir / "checkpoints" / str(tick)
    files = [
        p
        for part in ("learner", "host", "digests.json")
        for p in sorted([step / part, *(step / part).rglob("*")])
        if p.is_file()
    ]
    path = rng.choice([p for p in files if p.stat().st_size])
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def outcome(
    workdir: Path, settings: Mapping[str, Any], pair: Pair, whole: Path | None, rng: random.Random
) -> tuple[str, str]:
    """Returns the outcome of the second start in the run directory, and what is wrong with it.

    Args:
        workdir: a copy of the first start's run directory.
        settings: settings of all runs.
        pair: the two starts.
        whole: the run directory of a run that was never stopped.
        rng: draws the byte to change.
    """
    there = ticks(workdir)
    if pair.fault.startswith("byte"):
        for tick in there if pair.fault == "byte in all" else there[:1]:
            change_byte(workdir, tick, rng)
    hosts = {tick: workdir / "checkpoints" / str(tick) / "host" / "metadata" for tick in there}
    bits = {
        tick: json.loads(path.read_text(errors="replace"))["bits"]
        for tick, path in hosts.items()
        if not pair.fault.startswith("byte")
    }
    if pair.fault == "byte in the newest":
        bits = {there[1]: json.loads(hosts[there[1]].read_text())["bits"]}
    before = contents(workdir)
    code, text, restored = start(
        workdir,
        {**settings, **pair.second.settings(END_TOKENS)},
        EXCEPTIONS.get(pair.fault, ("",))[0],
    )
    if code == 2:
        wrong = [] if "error: " in text and "Traceback" not in text else ["no clear message"]
        changed = sorted(
            name
            for name in {*before, *contents(workdir)}
            if before.get(name) != contents(workdir).get(name)
        )
        return "refused", "; ".join(wrong + [f"changed {name}" for name in changed])
    if code or restored is None:
        return "failed", f"exit code {code}: {text[-300:]}"
    if restored["tick"] not in there:
        return "restarted", f"at tick {restored['tick']}; checkpoints were {there}"
    wrong = [] if restored["bits"] == bits.get(restored["tick"]) else ["other bits were restored"]
    if restored["tick"] == there[0]:
        wrong += kill.differences(whole, workdir) if whole else []
        return "continues", "; ".join(wrong)
    wrong += [] if "is damaged" in text else ["fell back without a word"]
    wrong += [] if restored["tick"] == there[1] else [f"fell back to {restored['tick']} of {there}"]
    return "falls back", "; ".join(wrong)


class Runs:
    """First starts and uninterrupted runs. Each is run once and then copied."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder, self.settings = folder, settings

    def path(self, start: Start, tokens: int) -> Path:
        """The run directory of a start that stops after `tokens` tokens."""
        name = "_".join(map(str, (*start.mesh, *start[1:], tokens)))
        return self.folder / name

    def make(self, which: tuple[Start, int]) -> None:
        """Runs it.

        Raises:
            ConfigError: the run fails.
        """
        start_, tokens = which
        code, text, _ = start(
            self.path(start_, tokens), {**self.settings, **start_.settings(tokens)}
        )
        if code:
            raise ConfigError(
                f"a first start with {start_} failed with exit code {code}: {text[-2000:]}"
            )


def measure(folder: Path, count: int, rng: random.Random, jobs: int) -> dict[str, Any]:
    """The figures of `count` pairs."""
    begin = time.monotonic()
    runs = Runs(
        folder,
        {
            **SETTINGS,
            "train.compile_cache": folder / "compiled",
            "world.cache_dir": folder / "world",
        },
    )
    pairs = draw(rng, count)
    same = {pair.first for pair in pairs if pair.first == pair.second and not pair.fault}
    needed = list(
        dict.fromkeys(
            [
                *((p.first, STOP_TOKENS) for p in pairs),
                *((first, END_TOKENS) for first in sorted(same)),
            ]
        )
    )
    runs.make(needed[0])  # pretrains the base model that all share
    outcomes: Counter[str] = Counter()
    right = 0

    def second(numbered: tuple[int, Pair]) -> tuple[Pair, str, str]:
        number, pair = numbered
        workdir = folder / f"pair{number}"
        shutil.copytree(runs.path(pair.first, STOP_TOKENS), workdir)
        whole = (
            runs.path(pair.first, END_TOKENS)
            if pair.first in same and pair.first == pair.second and not pair.fault
            else None
        )
        kind, wrong = outcome(workdir, runs.settings, pair, whole, random.Random(number))
        wrong = wrong or ("" if kind == pair.expected else f"expected: {pair.expected}")
        if not wrong:
            shutil.rmtree(workdir)
        return pair, kind, wrong

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(runs.make, needed[1:]))
        for number, (pair, kind, wrong) in enumerate(pool.map(second, enumerate(pairs)), 1):
            outcomes[kind] += 1
            right += not wrong
            what = (
                "the same"
                if pair.first == pair.second
                else f"{tuple(pair.first)} -> {tuple(pair.second)}"
            )
            print(
                f"{number}/{count}  {what}  {pair.fault or 'no fault'}: {kind}  {wrong or 'right'}",
                file=sys.stderr,
                flush=True,
            )
    names = {
        "continues": "continued",
        "falls back": "fell_back",
        "refused": "refused",
        "restarted": "restarted",
        "failed": "failed",
    }
    return {
        "pairs": count,
        "right": right,
        "frac_right": right / count,
        **{figure: outcomes[kind] for kind, figure in names.items()},
        "compared_with_an_uninterrupted_run": sum(
            p.first == p.second and not p.fault for p in pairs
        ),
        "seconds": round(time.monotonic() - begin, 1),
    }


COMMAND_LINE = CommandLine(
    "benchmarks.resume",
    __doc__,
    Flag("pairs", "Pairs of runs", 200, kind=int, within=COUNT),
    Flag("seed", "Seed of the settings", "0"),
    Flag("folder", "Empty folder to keep the runs in (default: a temporary one)", metavar="DIR"),
    Flag("jobs", "Pairs at a time", 2, kind=int, within=COUNT),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Runs and reports.

    Raises:
        ConfigError: the flags are invalid, or a first start fails.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = report.own_folder(flags["folder"], temporary)
        figures = measure(folder, flags["pairs"], random.Random(flags["seed"]), flags["jobs"])
    report.finish("resume", figures, TARGETS)


if __name__ == "__main__":
    child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else command(run)
