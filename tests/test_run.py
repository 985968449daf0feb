"""The Python API: the documented example, stopping and continuing, and what a Run refuses."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from p2o_jax import Run
from p2o_jax.config import Config, ConfigError
from tests import toy_runs

STEPS = toy_runs.STEPS_PER_EPOCH
ROOT = Path(__file__).parent.parent
EXAMPLE = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python-api.md").read_text(), re.DOTALL)


def test_the_example_of_the_documentation_and_a_run_that_is_stopped(tmp_path, shared):
    """The example as it stands, with the small world of the other runs. A run that is stopped and
    continued has the same records.
    """
    (tmp_path / "configs").mkdir()
    settings = {**toy_runs.settings(shared), "train.num_samples_logged": 2}
    lines = "".join(f"    c.{key} = {_typed(value)!r}\n" for key, value in settings.items())
    (tmp_path / "configs/smoke.py").write_text(
        "import runpy\n\n\ndef get_config():\n"
        f"    c = runpy.run_path({str(ROOT / 'configs/smoke.py')!r})['get_config']()\n"
        f"{lines}    return c\n"
    )
    stopped = """
again = Run(run.cfg, "runs/stopped", {"train.epochs": 1})
state = again.train(lambda step, values: again.stop() if "train/loss" in values else None)
assert state.step == 1 and again.state is state, state.step
assert again.train().step == STEPS
assert len(again.samples()) == 2 * STEPS
again.close()
""".replace("STEPS", str(STEPS))
    script = (
        f"rewards = None\n{EXAMPLE[0]}\nassert len(rewards) == {STEPS}\n{EXAMPLE[1]}\n{stopped}"
    )
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    environment = {**toy_runs.environment(), "PYTHONPATH": path}
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


def _typed(value: object) -> object:
    """Returns a setting as a config file states it, which may be text of the command line."""
    if isinstance(value, Path):
        return str(value)
    text = {"true": "True", "false": "False"}.get(str(value), str(value))
    return ast.literal_eval(text) if text[:1] in "(TF" else value


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
