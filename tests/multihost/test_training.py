"""The real command as two processes of one mesh: pretraining, steps, a prompt phase, evaluation and checkpoints, as by one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
SMALL = ["--config.gepa.max_metric_calls=30", "--config.world.steps=30", "--config.eval.every_steps=4", "--config.rollout.min_slots=0"]


def run(folder: Path, num_processes: int, devices_each: int) -> Path:
    """The workdir of a run by so many processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    workdir, env = folder / f"by_{num_processes}", {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "NPROC": "32"}
    env.pop("JAX_NUM_CPU_DEVICES", None)
    several = {"JAX_COORDINATOR_ADDRESS": coordinator, "JAX_NUM_PROCESSES": str(num_processes)} if num_processes > 1 else {}
    flags = [f"--workdir={workdir}", f"--config.mesh.cpu_devices={devices_each}", f"--config.world.cache_dir={folder}/world", *SMALL]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "p2o_jax.main", "--config=configs/smoke.py", *flags],
            env={**env, **several, **({"JAX_PROCESS_ID": str(i)} if several else {})},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(num_processes)
    ]
    errors = [process.communicate(timeout=600)[1] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(e[-3000:] for e in errors)
    assert all("step 4/4" not in e for e in errors[1:]), "only process 0 tells"
    return workdir


def rows(workdir: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (workdir / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return run(folder, 1, 4), run(folder, 2, 2)


def test_two_processes_train_as_one_does(workdirs):
    for name in ("samples", "questions"):
        texts = [[{k: v for k, v in row.items() if isinstance(v, str | int | list)} for row in rows(w, name)] for w in workdirs]
        assert texts[0] == texts[1] and texts[0]
    assert [row.get("text") for row in rows(workdirs[0], "templates")] == [row.get("text") for row in rows(workdirs[1], "templates")]
    timed = ("time/", "perf/")
    for alone, together in zip(*(rows(w, "metrics") for w in workdirs), strict=True):
        assert set(alone) == set(together)
        for name in alone:
            if not name.startswith(timed):
                np.testing.assert_allclose(together[name], alone[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_checkpoint_of_two_processes_is_restored_by_one(workdirs):
    """Its weights are those of one process, and the export of it is a model directory."""
    done = subprocess.run(
        [sys.executable, "-m", "p2o_jax.export", f"--workdir={workdirs[1]}", f"--out={workdirs[1]}/exported", 
         "--config.mesh.cpu_devices=1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((workdirs[1] / "exported").glob("*.safetensors"))
