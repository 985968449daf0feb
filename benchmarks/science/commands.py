"""Commands of the package, run as a user would."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from p2o_jax.config import ConfigError

ROOT = Path(__file__).parents[2]
END = 1500  # characters of a failed command's output that are shown


class Usage(NamedTuple):
    """What a command took: CPU seconds, and its peak memory in GiB."""

    cpu_seconds: float
    peak_gib: float


class Ended(NamedTuple):
    """Exit code of a command, the end of its output, and what it took."""

    code: int
    output: str
    usage: Usage


def run(words: Sequence[str], core: int | None = None) -> Ended:
    """Runs a command in the folder of the repository, on one core if it is given."""
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output)
        if core is not None:
            os.sched_setaffinity(child.pid, {core})
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        cpu_seconds, gib = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20
        took = Usage(round(cpu_seconds, 1), round(gib, 2))
        return Ended(child.returncode, output.read()[-END:], took)


def call(module: str, *arguments: str) -> Usage:
    """Runs `python -m module`, and returns what it took.

    Raises:
        ConfigError: it failed; with the end of its output.
    """
    ended = run([sys.executable, "-m", module, *arguments])
    if ended.code:
        raise ConfigError(f"{module}: {ended.output}")
    return ended.usage
