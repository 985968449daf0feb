"""Sampling and judging by two processes of one mesh: the same as by one, and only process 0
judges.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
WORKER = Path(__file__).with_name("sampling_worker.py")


def run(folder: Path, num_processes: int, devices_each: int) -> list[dict]:
    """What each process wrote."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    outs = [folder / f"{num_processes}_{i}.json" for i in range(num_processes)]
    started = [
        subprocess.Popen(
            [
                sys.executable,
                str(WORKER),
                coordinator,
                str(num_processes),
                str(i),
                str(devices_each),
                str(out),
            ],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, out in enumerate(outs)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(e[-2000:] for e in errors)
    return [json.loads(out.read_text()) for out in outs]


# the runs of test_training sample and judge as one process does, too
@pytest.mark.slow
def test_two_processes_sample_what_one_does_and_process_0_judges(tmp_path):
    (alone,) = run(tmp_path, 1, 4)
    first, second = run(tmp_path, 2, 2)
    for result in (first, second):
        assert result["texts"] == alone["texts"] and result["scores"] == alone["scores"]
        for a, b in zip(result["logps"], alone["logps"], strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4)
    assert alone["judged_here"] > 0 and first["judged_here"] > 0 and second["judged_here"] == 0
    assert len(set(alone["texts"])) > 20 and set(alone["scores"]) == {0.0, 1.0}
