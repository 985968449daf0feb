"""Commands of the package, run as a user would."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from p2o_jax.config import ConfigError

ROOT = Path(__file__).parents[1]
END = 1500  # characters of a failed command's output that are shown
# On Linux, a process inherits the peak memory of the one that starts it: a small one does so.
_STARTER = """
import json, os, resource, subprocess, sys
core, *words = sys.argv[1:]
if core:
    os.sched_setaffinity(0, {int(core)})
code = subprocess.call(words, stdout=sys.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


class Usage(NamedTuple):
    """What a command took: CPU seconds, and the peak memory of its largest process in GiB."""

    cpu_seconds: float
    peak_gib: float


class Ended(NamedTuple):
    """Exit code of a command (negative: the signal that ended it), its output, and its usage."""

    code: int
    output: str
    usage: Usage


def run(words: Sequence[str], core: int | None = None) -> Ended:
    """Runs a command in the folder of the repository, on one core if it is given."""
    starter = [sys.executable, "-ISc", _STARTER, "" if core is None else str(core)]
    with tempfile.TemporaryFile("w+") as output:
        started = subprocess.run(
            [*starter, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=output, check=True
        )
        code, seconds, kib = json.loads(started.stdout)
        output.seek(0)
        return Ended(code, output.read(), Usage(round(seconds, 1), round(kib / 2**20, 2)))


def call(module: str, *arguments: str) -> Usage:
    """Runs `python -m module`, and returns what it took.

    Raises:
        ConfigError: it failed; with the end of its output.
    """
    ended = run([sys.executable, "-m", module, *arguments])
    if ended.code:
        raise ConfigError(f"{module}: {ended.output[-END:]}")
    return ended.usage
