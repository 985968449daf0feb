"""The quickstart on the device: the accuracies of its arms, as soon as each has them.

The run is a process of its own, and this one leaves the device to it.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FULL = ("configs/quickstart.py",)
# A run of every part but the prompt phase, which shows that the command runs.
TINY = (
    "configs/smoke.py",
    "world.steps=20",
    "world.cache_dir=CACHE",
    "gepa.enabled=false",
    "train.epochs=1",
    "eval.every_steps=0",
    "rollout.prompt_buckets=(32,)",
    "rollout.min_slots=0",
)


def measure(tiny: bool, put: Callable[..., None]) -> None:
    """Puts `base`, the accuracy before training, and the accuracy after each arm, with its seconds
    and tokens.

    Args:
        tiny: a run of seconds instead, which learns nothing.
        put: receives figures.

    Raises:
        RuntimeError: the run fails.
    """
    with tempfile.TemporaryDirectory(prefix="p2o-quickstart-") as folder:
        workdir = Path(folder) / "run"
        path, *settings = TINY if tiny else FULL
        words = [sys.executable, "-m", "p2o_jax.main", f"--config={path}", f"--workdir={workdir}"]
        words += [f"--config.{x.replace('CACHE', folder)}" for x in settings]
        with subprocess.Popen(words, stdout=sys.stderr) as run:
            shown: dict[str, Any] = {}
            while (code := run.poll()) is None:
                time.sleep(0.2)
                shown = _put_new(workdir, shown, put)
        _put_new(workdir, shown, put)
        if code:
            raise RuntimeError(f"the run ended with exit code {code}")


def _put_new(workdir: Path, shown: dict[str, Any], put: Callable[..., None]) -> dict[str, Any]:
    now = figures(workdir)
    if now != shown:
        put(**now)
    return now


def figures(workdir: Path) -> dict[str, Any]:
    """Returns what is in the result.json of each arm that has ended, and of a run without arms."""
    row: dict[str, Any] = {}
    arms = sorted(workdir.glob("*/result.json")) or list(workdir.glob("result.json"))
    for path in arms:
        result = json.loads(path.read_text(encoding="utf-8"))
        name = path.parent.name
        row["base"] = result["accuracy_before"]
        row[name] = result["accuracy"]
        row[f"{name}_seconds"] = result["seconds"]
        row[f"{name}_tokens"] = int(result["generated_tokens"])
    return row
