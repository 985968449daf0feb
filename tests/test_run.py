"""The Python API: the documented example, stopping and continuing, and what a Run refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from p2o_jax import Run
from p2o_jax.config import Config, ConfigError

ROOT = Path(__file__).parent.parent
EXAMPLE = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python-api.md").read_text(), re.DOTALL)
SMALL = {
    "world.steps": 5,
    "world.layers": 1,
    "world.hard_per_family": 1,
    "world.easy_per_family": 2,
    "world.heldout_per_family": 1,
    "rollout.questions": 4,
    "rollout.max_new_tokens": 8,
    "optim.minibatch_questions": 4,
    "train.num_samples_logged": 2,
}
STEPS = 2


def test_the_example_of_the_documentation_and_a_run_that_is_stopped(tmp_path):
    """The example as it stands, with a smaller world. A run that is stopped and continued has the
    same records.
    """
    (tmp_path / "configs").mkdir()
    lines = "".join(f"    c.{key} = {value!r}\n" for key, value in SMALL.items())
    (tmp_path / "configs/smoke.py").write_text(
        "import runpy\n\n\ndef get_config():\n"
        f"    c = runpy.run_path({str(ROOT / 'configs/smoke.py')!r})['get_config']()\n"
        f"{lines}    return c\n"
    )
    stopped = """
again = Run(run.cfg, "runs/stopped", {"train.epochs": 1})
state = again.train(lambda step, values: again.stop() if "train/loss" in values else None)
assert state.step == 1 and again.state is state, state.step
assert again.train().step == 2
assert len(again.samples()) == 4
again.close()
"""
    script = (
        f"rewards = None\n{EXAMPLE[0]}\nassert len(rewards) == {STEPS}\n{EXAMPLE[1]}\n{stopped}"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    evaluations = 2
    assert done.stdout.count("\n") == STEPS + evaluations + 3  # and three prints after training
    whole, continued = (_untimed(tmp_path / "runs" / name) for name in ("notebook", "stopped"))
    assert whole == continued and len(whole) == STEPS + evaluations
    result = Run(tmp_path / "configs/smoke.py", tmp_path / "runs/stopped").result()
    assert result["steps"] == STEPS


def _untimed(workdir: Path) -> list[dict]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in row.items() if not key.startswith(("time/", "perf/"))}
        for row in rows
    ]


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, p2o_jax; heavy = {'jax', 'transformers', 'numpy', 'datasets'};"
        " assert not heavy & set(sys.modules); from p2o_jax import Run;"
        " assert not {'jax', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(ImportError):
        from p2o_jax import Nothing  # type: ignore[attr-defined]  # noqa: F401


def test_what_a_run_refuses(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        Run(tmp_path / "none.py")
    with pytest.raises(ConfigError) as e:
        Run(Config(), tmp_path, {"optim.learning": 1, "train.epochs": "many"})
    assert len(e.value.problems) == 2
    with pytest.raises(ConfigError, match="needs a workdir"):
        Run(Config())
    with pytest.raises(ConfigError, match="config.arms"):
        Run(ROOT / "configs/quickstart.py")
    run = Run(Config(), tmp_path / "run", {"data.path": "", "optim.lr": -1})
    with pytest.raises(ConfigError) as e:
        run.train()
    assert len(e.value.problems) > 1 and not (tmp_path / "run/config.json").exists()
    assert json.loads(json.dumps(run.metrics())) == []
