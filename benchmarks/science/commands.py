"""Commands of the package, run as a user would."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from p2o_jax.config import ConfigError

ROOT = Path(__file__).parents[2]
END = 1500  # characters of a failed command's output that are shown


class Usage(NamedTuple):
    """What a command took: CPU seconds, and its peak memory in GiB."""

    cpu_seconds: float
    peak_gib: float


def call(module: str, *arguments: str) -> Usage:
    """Runs `python -m module` in the folder of the repository, and returns what it took.

    Raises:
        ConfigError: it failed; with the end of its output.
    """
    words = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            raise ConfigError(f"{module}: {output.read()[-END:]}")
    return Usage(round(usage.ru_utime + usage.ru_stime, 1), round(usage.ru_maxrss / 2**20, 2))
