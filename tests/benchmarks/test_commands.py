import sys

import numpy as np
import pytest

from benchmarks import commands
from p2o_jax.config import ConfigError


def test_a_command_that_fails_says_so():
    with pytest.raises(ConfigError, match=r"json.tool: .*no_such_file"):
        commands.call("json.tool", "no_such_file")
    ended = commands.run([sys.executable, "-c", "print('x' * 9000); raise SystemExit(3)"])
    assert ended.code == 3 and ended.output == "x" * 9000 + "\n"
    killed = "import os; os.kill(os.getpid(), 9)"
    assert commands.run([sys.executable, "-c", killed]).code == -9


def test_what_a_command_takes_is_its_own():
    ours = np.ones(2**26)  # 512 MiB
    some = commands.run([sys.executable, "-c", "b'x' * 2**27"]).usage
    assert 0.12 < some.peak_gib < 0.3 and some.cpu_seconds < 10 and ours[-1] == 1
