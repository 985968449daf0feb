"""What a run directory says about its run: settings, questions and versions, and whether a command may go on there."""

import contextlib
import dataclasses
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from p2o_jax import files, run_lock, runtime
from p2o_jax.config import Config, ConfigError
from p2o_jax.data import sources
from p2o_jax.records import digest
from p2o_jax.subprocesses import environment


@contextlib.contextmanager
def claim(workdir: Path, checkpoint_path: str = "") -> Iterator[None]:
    """Holds a run directory, and a checkpoint folder elsewhere, for this command alone.

    Process 0 takes the locks, and all learn whether it could. A `gs://` folder has no lock; the
    note in it that names its run (`owner`) stands in for one.

    Raises:
        ConfigError: another process is at work there, which the line names.
    """
    folders = {workdir.resolve(): f"--workdir={workdir}"}
    if checkpoint_path and "://" not in checkpoint_path:
        folders.setdefault(Path(checkpoint_path).resolve(), f"config.checkpoint.path={checkpoint_path}")
    with contextlib.ExitStack() as stack:

        def take() -> list[str]:
            problems = []
            for folder, option in folders.items():
                try:
                    stack.enter_context(run_lock.Lock(folder))
                except (run_lock.Held, OSError) as e:
                    problems.append(f"{option}: {e}")
            return problems

        if problems := runtime.from_process_0(take):
            raise ConfigError(*problems)
        yield


def changed_settings(workdir: Path, cfg: Config) -> list[str]:
    """A line for each setting in which the run that the workdir holds differs; none if it holds no run."""
    path = workdir / "config.json"
    if not path.exists():
        return []
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        return [f"{path}: damaged ({e}); give another folder"]
    changed = [d for d in _differences(before, _as_json(cfg)) if not d[0].startswith(MAY_CHANGE)]
    return [
        f"config.{key}={now!r}: --workdir={workdir} holds a run with {there!r}; give another folder, or that" for key, there, now in changed
    ]


def changed_questions(workdir: Path, *parts: sources.Loaded | None) -> list[str]:
    """A line for each question file that is not what it was when the run in the workdir began."""
    path = workdir / "questions.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    now = question_digests(*parts)
    rule = f"--workdir={workdir} holds a run on other questions than are in it now; give another folder, or the same questions"
    return [f"{name}: {rule}" for name, digest in before.items() if now.get(name, digest) != digest]


def question_digests(*parts: sources.Loaded | None) -> dict[str, str]:
    return {part.path: digest(*(f"{q.id} {q.answer}" for q in part.questions)) for part in parts if part}


def write_run_files(workdir: Path, cfg: Config, *parts: sources.Loaded | None) -> None:
    """Writes config.json (resolved), questions.json (digests of what is asked) and versions.json of a run; process 0 alone does."""
    if not runtime.is_main_process():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(workdir / "questions.json", question_digests(*parts))
        files.write_json(workdir / "versions.json", versions())
        files.write_json(workdir / "config.json", _as_json(cfg))
    except OSError as e:
        raise ConfigError(f"--workdir={workdir}: {e}") from e


def _as_json(cfg: Config) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def fixed_settings(cfg: Config) -> dict[str, Any]:
    """The settings that may not change in a run, by key; where it keeps its states is not one that its results depend on."""
    settings = {"preset": cfg.preset}
    for section, part in _as_json(cfg).items():
        settings |= {f"{section}.{name}": value for name, value in part.items()} if isinstance(part, dict) else {}
    return {key: value for key, value in settings.items() if not key.startswith((*MAY_CHANGE, "checkpoint.path"))}


MAY_CHANGE = (
    "mesh.",
    "api.",
    "optim.micro_rows",
    "reward.workers",
    "reward.env",
    "reward.timeout_s",
    "rollout.slots",
    "rollout.min_slots",
    "rollout.bank_tokens",
    "rollout.prefill_tokens",
    "rollout.share_prefixes",
    "rollout.cache_dtype",  # what a run that ran out of memory is advised to set; like the mesh it changes roundings
    "rollout.prompt_buckets",
    "model.remat",
    "model.logit_chunk",
    "model.allow_long_context",
    "train.num_samples_logged",
    "train.epochs",
    "train.max_bad_steps",
    "train.max_generated_tokens",
    "train.compile_cache",
    "train.wandb_project",
    "train.watchdog_s",
    "train.flat_rewards_steps",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "checkpoint.grace_s",
    "eval.",
    "world.cache_dir",
)


def versions() -> dict[str, str]:
    """Versions of what the figures depend on, and the commit where there is one."""
    root = Path(__file__).parent.parent
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "gepa", "math-verify", "p2o-jax")
    found = {"python": sys.version.split()[0], "platform": platform.platform(), "devices": str(jax.devices()[:1])}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        head = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        found["commit"] = head.stdout.strip()
    return found


def _differences(before: Any, now: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{where}.{k}" if where else k)]
    return [] if before == now else [(where, before, now)]
