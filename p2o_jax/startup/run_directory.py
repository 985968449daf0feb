"""What a run directory says about its run, and whether a command may go on there.

Its records (`run_records`) are read once, by process 0, before anything is written.
"""

import contextlib
import dataclasses
import datetime
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from p2o_jax.config import Config, ConfigError, names, setting
from p2o_jax.data import seed_templates, sources
from p2o_jax.models import hf_config, identity
from p2o_jax.runtime import distributed, files, run_lock
from p2o_jax.startup import versions
from p2o_jax.tracking import run_records
from p2o_jax.tracking.run_records import ANEW, OWNER, ROWS, RUN
from p2o_jax.types import Question, digest

P2O, SFT = "p2o", "sft"  # the loops; a run directory belongs to one of them
COMMANDS = {P2O: "p2o_jax.main", SFT: "p2o_jax.sft"}
_ABSENT = "(no such setting)"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the text of an object, another one in every process


@contextlib.contextmanager
def claim(workdir: Path, checkpoint_path: str = "") -> Iterator[None]:
    """Holds a run directory, and a checkpoint folder elsewhere, for this command alone.

    Process 0 takes the locks, and all learn whether it could. A `gs://` folder has no lock; the
    note in it that names its run (OWNER) stands in for one.

    Raises:
        ConfigError: another process is at work there, which the line names.
    """
    folders = {workdir.resolve(): f"--workdir={workdir}"}
    if checkpoint_path and "://" not in checkpoint_path:
        folders.setdefault(
            Path(checkpoint_path).resolve(), f"config.checkpoint.path={checkpoint_path}"
        )
    with contextlib.ExitStack() as stack:

        def take() -> list[str]:
            problems = []
            for folder, option in folders.items():
                try:
                    stack.enter_context(run_lock.Lock(folder))
                except (run_lock.LockHeld, OSError) as e:
                    problems.append(f"{option}: {e}")
            return problems

        if problems := distributed.broadcast_from_main(take):
            raise ConfigError(*problems)
        yield


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """A run directory as a start finds it; the same on all processes.

    Attributes:
        records: the JSON records that are there, by name; with `restart` none.
        run: the values of RUN: those on record, else new ones, without a model.
        problems: a line for every reason not to start here that the directory itself gives.
        no_folder: there is no checkpoint folder.
        loop: P2O or SFT.
    """

    path: Path
    checkpoints: epath.Path
    restart: bool
    records: Mapping[str, Any]
    run: Mapping[str, Any]
    problems: Sequence[str]
    no_folder: bool
    loop: str = P2O

    @property
    def date(self) -> str:
        """The date of the run's first start (ISO), which its chat template shows."""
        return self.run["date"]

    def revision(self, model_path: str) -> str | None:
        """The hub's revision that the run's model is of."""
        model = self.run["model"]
        return model["revision"] if model and model["path"] == model_path else None

    def changed_settings(self, cfg: Config) -> list[str]:
        """A line for each setting in which the run on record differs and that may not change."""
        if "config.json" not in self.records:
            return []
        changed = [
            d
            for d in _differences(names.current_names(self.records["config.json"]), _as_json(cfg))
            if not may_change(d[0], self.loop)
        ]
        if unknown := [f"config.{key}" for key, there, now in changed if _ABSENT in (there, now)]:
            rule = f"one of the two does not have {', '.join(unknown)}; give another folder"
            return [f"--workdir={self.path} holds a run of another version of p2o_jax: {rule}"]
        where = f"--workdir={self.path} holds a run with"
        return [
            f"config.{key}={now!r}: {where} {there!r}; give another folder, or that"
            for key, there, now in changed
        ]

    def changed_questions(self, cfg: Config, *parts: sources.Loaded | None) -> list[str]:
        """A line for each file of questions or seed templates that is not what it was when the run
        began.
        """
        before = self.records.get("questions.json", {})
        # the latter of earlier versions
        current = question_digests(cfg, *parts)
        accepted = [current, current | question_digests(None, *parts)]

        def line(name: str) -> str:
            what = "seed templates" if name == cfg.gepa.seed_templates else "questions"
            return (
                f"{name}: --workdir={self.path} holds a run on other {what} than are in it now;"
                f" give another folder, or the same {what}"
            )

        changed = [
            name
            for name, there in before.items()
            if there not in [now.get(name, there) for now in accepted]
        ]
        return [line(name) for name in changed]

    def changed_model(self, directory: Path, now: identity.Digests) -> list[str]:
        """A line for each file of the model that is not what it was when the run began."""
        before = self.run["model"]
        if not before:
            return []
        rule = (
            f"--workdir={self.path} holds a run that was started with another; give that model, or"
            " another folder"
        )
        return [f"{directory}: {what}: {rule}" for what in identity.differing(before["files"], now)]

    def notices(self, cfg: Config, *parts: sources.Loaded | None) -> list[str]:
        """A line for what a run of an earlier version has no record of, and so cannot be
        compared.
        """
        if "config.json" not in self.records:
            return []
        lines = []
        if not self.run["model"]:
            lines.append(
                f"{self.path}: the run has no record of its model (an earlier version wrote it);"
                " recorded now"
            )
        before, now = self.records.get("questions.json", {}), question_digests(cfg, *parts)
        if cfg.reward.fn and any(now.get(name, there) != there for name, there in before.items()):
            lines.append(
                f"{self.path}: the run has no record of the columns that config.reward.fn is given;"
                " recorded now"
            )
        return lines

    def check_begin(self) -> None:
        """To be called where there is no checkpoint.

        Raises:
            ConfigError: the run has had some: to begin at step 1 would overwrite its records.
        """
        paths = [self.path / name for name in ROWS]
        rows = distributed.broadcast_from_main(
            lambda: [p.name for p in paths if p.exists() and p.stat().st_size]
        )
        lost = self.run["checkpoints"] or (self.no_folder and "://" not in str(self.checkpoints))
        if rows and lost:
            raise ConfigError(
                f"{self.checkpoints}: no checkpoint, but --workdir={self.path} holds records of a"
                f" run that had some ({', '.join(rows)}). Put the checkpoints back, or {ANEW}"
            )

    def write(
        self, cfg: Config, directory: Path, model: identity.Digests, *parts: sources.Loaded | None
    ) -> None:
        """Writes what names the run, its settings, questions and versions; process 0 alone does."""
        if not distributed.is_main_process():
            return
        named = {"path": cfg.model.path, "revision": hf_config.revision(directory), "files": model}
        run = {**self.run, "model": self.run["model"] or named}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            files.write_json(self.path / "questions.json", question_digests(cfg, *parts))
            files.write_json(self.path / "versions.json", versions.installed())
            files.write_json(self.path / RUN, run)
            files.write_json(self.path / "config.json", _as_json(cfg))
            if self.is_elsewhere:
                note = json.dumps({**run, "workdir": str(self.path.resolve())}, indent=1)
                (self.checkpoints / OWNER).write_text(note)
        except OSError as e:
            raise ConfigError(f"--workdir={self.path}: {e}") from e

    def put_away(self) -> str:
        """Moves the records of the run that was here to another name; a line that says where to."""

        def move() -> str:
            kept = run_records.put_away(self.path, self.checkpoints)
            if kept is None:
                return f"--restart: no run in {self.path}; this is its first start"
            rule = "leave --restart out of further starts, which go on from this one"
            return f"--restart: the records so far are in {kept}; {rule}"

        return distributed.broadcast_from_main(move)

    def note_checkpoint(self) -> None:
        """Records that the run has a checkpoint: from now on it does not begin at step 1 without
        being asked to.
        """
        if distributed.is_main_process():
            run = json.loads((self.path / RUN).read_text(encoding="utf-8"))
            if not run["checkpoints"]:
                files.write_json(self.path / RUN, {**run, "checkpoints": True})

    @property
    def is_elsewhere(self) -> bool:
        """Whether the checkpoints are not in the run directory."""
        return self.checkpoints != epath.Path(self.path.absolute() / "checkpoints")


def read(
    workdir: Path,
    checkpoints: epath.Path | None = None,
    restart: bool = False,
    loop: str | None = None,
) -> RunDirectory:
    """The run directory as it is now.

    Args:
        checkpoints: the folder of its checkpoints; None: the one in it.
        restart: the run is to begin anew; what the records say does not count.
        loop: which the run is of, P2O or SFT; None: any.
    """
    inside = epath.Path(workdir.absolute() / "checkpoints")
    where = inside if checkpoints is None else checkpoints
    new = {
        "id": secrets.token_hex(8),
        "date": datetime.date.today().isoformat(),
        "model": None,
        "checkpoints": False,
        **({"loop": loop} if loop == SFT else {}),
    }

    def look() -> dict[str, Any]:
        records, damaged = run_records.read(workdir)
        run = records.get(RUN)
        problems = run_records.strangers(workdir, records)
        owner, wrong = (
            (None, [])
            if where == inside
            else run_records.read_owner(where, workdir, run["id"] if run else None)
        )
        if restart:
            records, run, owner, damaged = {}, None, None, []
        there = (run or owner or new).get("loop", P2O)
        if loop and there != loop:
            wrong = [
                *wrong,
                f"--workdir={workdir} holds a run of {COMMANDS[there]}, and this is"
                f" {COMMANDS[loop]}; give another folder",
            ]
        return {
            "records": records,
            "run": run or owner or new,
            "problems": [*damaged, *problems, *wrong],
            "no_folder": not where.exists(),
        }

    seen = distributed.broadcast_from_main(look)
    return RunDirectory(workdir, where, restart, **seen, loop=loop or P2O)


def put_away_comparison(workdir: Path) -> None:
    """Moves a comparison of runs that have begun anew since to another name."""
    distributed.broadcast_from_main(lambda: run_records.put_away_comparison(workdir))


def read_date(workdir: Path) -> str | None:
    """The date (ISO) that the chat template of a run shows; None if the folder holds no run."""
    return read(workdir).records.get(RUN, {}).get("date")


def question_digests(cfg: Config | None, *parts: sources.Loaded | None) -> dict[str, str]:
    """A digest of each file of questions or seed templates, by its path; with what else
    config.reward.fn judges by, if it is set.
    """
    with_meta = cfg is not None and bool(cfg.reward.fn)

    def text(question: Question) -> str:
        meta = (
            _ADDRESS.sub("", json.dumps(dict(question.meta), sort_keys=True, default=str))
            if with_meta
            else ""
        )
        hint = question.hint if cfg is not None and cfg.data.hint_field else ""
        return f"{question.id} {question.answer}{meta}{hint}"

    digests = {part.path: digest(*map(text, part.questions)) for part in parts if part}
    if cfg is not None and cfg.gepa.enabled and cfg.gepa.seed_templates:
        digests[cfg.gepa.seed_templates] = seed_templates.digest_of(cfg.gepa.seed_templates)
    return digests


def evaluation_digest(cfg: Config, heldout: Sequence[sources.Loaded]) -> str:
    """Names what accuracies on the held-out questions depend on besides the policy."""
    settings = {
        name: value for name, value in _as_json(cfg)["eval"].items() if name != "every_steps"
    }
    return digest(json.dumps([settings, question_digests(cfg, *heldout)], sort_keys=True))


def _as_json(cfg: Config) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def fixed_settings(cfg: Config, loop: str = P2O) -> dict[str, Any]:
    """The settings that may not change in a run, by key; where it keeps its states is not one
    that its results depend on.
    """
    values = {"preset": cfg.preset, **({"loop": loop} if loop != P2O else {})}
    for section, part in _as_json(cfg).items():
        values |= (
            {f"{section}.{name}": value for name, value in part.items()}
            if isinstance(part, dict)
            else {}
        )
    return {
        key: value
        for key, value in values.items()
        if key != "checkpoint.path" and not may_change(key, loop)
    }


def may_change(key: str, loop: str) -> bool:
    """Whether a setting may change when a run of this loop is resumed."""
    return (loop == P2O and key.partition(".")[0] == "sft") or setting.may_change(Config, key)


def _differences(before: Any, now: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [
            d
            for k in keys
            for d in _differences(
                before.get(k, _ABSENT), now.get(k, _ABSENT), f"{where}.{k}" if where else k
            )
        ]
    return [] if before == now else [(where, before, now)]
