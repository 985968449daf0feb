"""Measures an accelerator with this package, in less than eight minutes:
`python -m benchmarks.accelerator --out FILE`.

The parts, in order; each is a process of its own, and one that fails, hangs or runs out of memory
leaves the others as they are:

- `speed`: copies in the device's memory, and products of bfloat16 matrices.
- `kernels`: attention of a decode step and of training, as the package chooses it for the device,
  against the dense reference.
- `decode-0.6b`: the sampler with the shape of Qwen3-0.6B, against the time to read weights and
  caches at the measured speed of copies.
- `public`: the 256 sequences of nano-vllm's benchmark, with Qwen3-0.6B's shape: 100 to 1024 tokens
  of prompt and of response each.
- `update`: the learner's update on rows of 4096 tokens, as a share of the peak (MFU).
- `decode-1.7b`: as `decode-0.6b`, with Qwen3-1.7B's shape.
- `quickstart`: configs/quickstart.py, and the accuracies it reaches.

Weights are random and bfloat16. One device is used. A table is printed at the end. FILE gets a line
of JSON, which is complete for the parts so far whenever the command is killed; the lines of earlier
calls stay. With --tiny all parts run on a CPU with very small shapes, and their figures mean
nothing.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.accelerator import device, parts
from benchmarks.accelerator.bounds import Rates
from p2o_jax.config import ConfigError
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command
from p2o_jax.runtime import files

TINY = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # most of the time is compilation
COMMAND_LINE = CommandLine(
    "benchmarks.accelerator",
    __doc__,
    Flag("out", "File that a line of JSON is added to", metavar="FILE"),
    Flag("seconds", "Time for all parts; what is late is skipped", 480, kind=int, within=COUNT),
    Flag("parts", "Parts to run", list(parts.NAMES), several=True, choices=parts.NAMES),
    Flag("tiny", "Very small shapes on a CPU, to try the command", False, kind=bool),
    Flag("part", "Used internally: the part of this process", choices=parts.NAMES, metavar="PART"),
    Flag("rates", "Used internally: bytes and operations per second of the device", "0,0"),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Measures, writes FILE and prints a table; or runs a single part.

    Raises:
        ConfigError: the flags are invalid, or FILE cannot be written.
    """
    flags, _ = COMMAND_LINE.parse(argv, _rules)
    if flags["part"]:
        rates = Rates(*map(float, flags["rates"].split(",")))
        parts.measure(flags["part"], rates, flags["tiny"])
        return
    previous = signal.signal(signal.SIGTERM, _interrupt)  # the part that is running ends, too
    try:
        _run_parts(flags)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run_parts(flags: dict[str, Any]) -> None:
    begin, out = time.monotonic(), Path(flags["out"])
    before = _before(out)
    line = {
        "bench": "accelerator",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "tiny": flags["tiny"],
        "driver": "" if flags["tiny"] else device.gpu_driver(),
        "budget_s": flags["seconds"],
        "card": {},
        "versions": {},
        "seconds": 0.0,
        "parts": [],
    }

    def command_of(name: str, rates: Rates) -> list[str]:
        own = [sys.executable, "-m", "benchmarks.accelerator", f"--part={name}"]
        return [*own, f"--rates={rates.bytes_per_s},{rates.flops}", f"--tiny={flags['tiny']}"]

    wanted = [part for part in parts.PARTS if part.name in flags["parts"]]
    environment = {**TINY, **os.environ, "JAX_PLATFORMS": "cpu"} if flags["tiny"] else None
    for row in parts.run_all(wanted, flags["seconds"] - parts.END_S, command_of, environment):
        for key in ("card", "versions"):
            line[key] = line[key] or row.get(key, {})
            row.pop(key, None)
        line["parts"].append(row)
        line["seconds"] = round(time.monotonic() - begin, 1)
        files.write_whole(out, before + json.dumps(line) + "\n")
        print(parts.table([row]).splitlines()[-1], file=sys.stderr, flush=True)
    print(parts.heading(line), parts.table(line["parts"]), "", json.dumps(line), sep="\n")


def _rules(flags: dict[str, Any]) -> Iterator[str]:
    if not flags["out"] and not flags["part"]:
        yield "--out: required"


def _before(out: Path) -> str:
    """Returns the lines that FILE has. Raises a ConfigError unless it can be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = out.read_text(encoding="utf-8") if out.exists() else ""
        files.write_whole(out, text)
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"--out={out}: cannot be written: {e}") from e
    return text if text.endswith("\n") or not text else text + "\n"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    command(run)
