"""The parts of the benchmark, each run in a process of its own with a deadline.

A part's process prints a JSON line for each figure as soon as it has it. What was printed counts,
however the process ends.
"""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accelerator.bounds import Rates
from p2o_jax.runtime.console import printable

ROOT = Path(__file__).parents[2]
LOG_BYTES = 4000  # of the end of a part's log, kept where the part did not end well
END_S = 2.0  # of the budget, for the end of the command


class TimedPart(NamedTuple):
    """A part, the longest that it may take, and the least time it is worth starting in, both in
    seconds; the figures that the table shows of it, by default all.
    """

    name: str
    limit_s: float
    least_s: float
    shown: tuple[str, ...] = ()


_SAMPLED = ("slots", "tokens_per_s", "of_bound", "decode_tokens_per_s", "decode_of_bound")
_COMPARED = tuple(
    f"{of}.{name}"
    for of in ("decode", "training")
    for name in ("path", "agrees", "error", "ms", "dense_ms")
)
# In order of what they say: nothing else can be judged without the first two.
PARTS = (
    TimedPart("speed", 60, 10),
    TimedPart("kernels", 90, 15, _COMPARED),
    TimedPart("decode-0.6b", 110, 30, _SAMPLED),
    TimedPart("public", 150, 40, _SAMPLED),
    TimedPart("update", 120, 40, ("model", "mfu", "of_matmul", "tokens_per_s")),
    TimedPart("decode-1.7b", 100, 30, _SAMPLED),
    TimedPart("quickstart", 600, 60),
)
NAMES = tuple(part.name for part in PARTS)


def measure(name: str, rates: Rates, tiny: bool) -> None:
    """Measures a part in this process, and prints JSON lines: {"card": ..., "versions": ...}, then
    {"figures": {...}} for each figure.

    Args:
        name: the part.
        rates: of the device, as measured by `speed`.
        tiny: small sizes, for a CPU.
    """

    def put(**figures: Any) -> None:
        print(json.dumps({"figures": figures}), flush=True)

    if name == "quickstart":
        from benchmarks.accelerator import quickstart

        quickstart.measure(tiny, put)
        return
    from benchmarks.accelerator import bounds, device, kernels, sampling, speed, update

    measures: dict[str, Callable[..., None]] = {
        "speed": speed.measure,
        "kernels": kernels.measure,
        "decode-0.6b": sampling.DECODE["0.6b"],
        "public": sampling.PUBLIC,
        "update": update.measure,
        "decode-1.7b": sampling.DECODE["1.7b"],
    }
    mesh = device.start()
    print(json.dumps(device.described(mesh)), flush=True)
    if not any(rates):  # `speed` was not run, or failed
        rates = bounds.data_sheet(mesh.devices.flat[0].device_kind)
    measures[name](mesh, rates, tiny, put)


def allowed(part: TimedPart, left_s: float) -> float:
    """Returns the seconds that a part may take of those left; 0 if it is not worth starting."""
    return min(part.limit_s, left_s) if left_s >= part.least_s else 0.0


def run_all(
    parts: Sequence[TimedPart],
    budget_s: float,
    command_of: Callable[[str, Rates], Sequence[str]],
    environment: dict[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Runs parts one after another, and yields a row for each as it ends.

    Args:
        parts: the parts, in order.
        budget_s: seconds for all. A part that would begin with less than it needs is skipped.
        command_of: the command of a part, by its name and the rates measured so far.
        environment: variables of its process; None: those of this one.
    """
    end, rates = time.monotonic() + budget_s, Rates()
    for part in parts:
        left = end - time.monotonic()
        seconds = allowed(part, left)
        if seconds:
            row = call(command_of(part.name, rates), seconds, environment)
        else:
            why = f"{max(left, 0):.0f} s are left, and it needs {part.least_s:.0f}"
            row = {"status": "skipped", "seconds": 0.0, "why": why, "figures": {}}
        if part.name == "speed":
            rates = rates_of(row["figures"])
        yield {"part": part.name, **row}


def rates_of(figures: dict[str, Any]) -> Rates:
    """Returns the rates that `speed` measured; zeros where it did not."""
    return Rates(figures.get("copy_gb_per_s", 0) * 1e9, figures.get("matmul_tflops", 0) * 1e12)


def call(
    command: Sequence[str], limit_s: float, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Runs a part's command and returns its row: status (done, failed or timed out), seconds, why
    it is not done, figures, and what the process said of card and versions.

    At the deadline the process and all that it has started are killed.

    Args:
        command: the command.
        limit_s: seconds until it is killed.
        environment: its variables; None: those of this process.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="p2o-accelerator-") as folder:
        out, log = Path(folder) / "out", Path(folder) / "log"
        with (
            out.open("wb") as stdout,
            log.open("wb") as stderr,
            _in_own_session(command, stdout, stderr, environment) as process,
        ):
            try:
                code: int | None = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = None
        text = log.read_bytes()[-LOG_BYTES:].decode("utf-8", "replace")
        row = _printed(out.read_text(encoding="utf-8", errors="replace"))
    why, status = "", "done"
    if code is None:
        status, why = "timed out", f"killed after {limit_s:.0f} s"
    elif code:
        status, why = "failed", _reason(code, text)
    ended = {"status": status, "seconds": round(time.monotonic() - begin, 1), "why": why}
    return {**ended, **row, **({"log": text} if code != 0 else {})}


@contextmanager
def _in_own_session(
    command: Sequence[str], stdout: Any, stderr: Any, environment: dict[str, str] | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a command in a session of its own, and at the end kills what is left of it."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a driver may keep it
            process.wait(10)


def _printed(text: str) -> dict[str, Any]:
    """Returns what the lines of a part's output say; only JSON objects count."""
    row: dict[str, Any] = {"figures": {}}
    for line in text.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            row["figures"] |= said.pop("figures", {})
            row |= said
    return row


def _reason(code: int, log: str) -> str:
    """Returns why a process ended with this exit code: a signal, or the last line of its log that
    names an error.
    """
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (" (out of the machine's memory?)" if code == -9 else "")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if "rror: " in line or "RESOURCE_EXHAUSTED" in line]
    last = (named or lines or ["no message"])[-1]
    return f"exit code {code}: {printable(last)[:300]}"


def heading(line: dict[str, Any]) -> str:
    """Returns what was measured, when and with what, in a line."""
    names = ("jax", "jaxlib", "flax", "optax")
    versions = (f"{name} {line['versions'][name]}" for name in names if name in line["versions"])
    device = line["card"].get("device", "unknown device")
    words = [device, line["driver"], line["date"], *versions, f"{line['seconds']} s in all"]
    return ", ".join(filter(None, words))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as a table in Markdown: part, status, seconds, and why not or the figures
    that the part shows.
    """
    shown = {part.name: part.shown for part in PARTS}
    lines = ["| part | status | seconds | figures |", "| --- | --- | --- | --- |"]
    for row in rows:
        words = [row["why"]] if row["why"] else []
        flat = dict(_flat(row["figures"]))
        chosen = shown.get(row["part"]) or flat
        words += [f"{name} {value}" for name, value in flat.items() if name in chosen]
        text = ", ".join(words).replace("|", "\\|")
        lines.append(f"| {row['part']} | {row['status']} | {row['seconds']:.1f} | {text} |")
    return "\n".join(lines)


def _flat(figures: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", x) for inner, x in _flat(value))
        else:
            yield name, "unknown" if value is None else value
