"""The files that a run leaves in its directory: reading its JSON records, and moving all of it
away.

`run.json` names the run: an id, the date of its first start, its model, and whether it has had a
checkpoint. A checkpoint folder elsewhere holds a copy, `owner.json`, with the run directory in it.
"""

import datetime
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

RUN = "run.json"
OWNER = "owner.json"
ANEW = "begin anew with --restart, which keeps the old records"
ROWS = ("metrics.jsonl", "samples.jsonl", "templates.jsonl", "evaluations.jsonl", "questions.jsonl")

# in the order in which they are moved away: a start after a kill in between must see that there was
# a run
_FOLDERS = ("checkpoints", "checkpoints_damaged")
_RESULTS = (*ROWS, "gepa", "tensorboard", "wandb", "bad_batch.npz", "result.json")
_NAMES = ("wandb.json", "seconds.json", "versions.json", "questions.json", "config.json", RUN)
COMPARISON = ("result.json", "comparison.png")


def is_run(value: Any) -> bool:
    """Whether these are the contents of run.json; what they are not may raise, too."""
    model = value["model"]
    datetime.date.fromisoformat(value["date"])
    return (
        isinstance(value["id"], str)
        and isinstance(value["checkpoints"], bool)
        and value.get("loop", "p2o") in ("p2o", "sft")
        and isinstance(model["path"], str)
        and isinstance(model["revision"], str | None)
        and all(
            isinstance(size, int) and isinstance(text, str)
            for size, text in model["files"].values()
        )
    )


_SHAPES: dict[str, Callable[[Any], bool]] = {
    "config.json": lambda v: isinstance(v, dict) and "preset" in v,
    "questions.json": lambda v: all(isinstance(text, str) for text in v.values()),
    "versions.json": lambda v: isinstance(v, dict),
    "seconds.json": lambda v: isinstance(v, list) and all(type(x) in (int, float) for x in v),
    "wandb.json": lambda v: isinstance(v["id"], str),
    RUN: is_run,
}


def read(workdir: Path) -> tuple[dict[str, Any], list[str]]:
    """(JSON records by name, of those that are there; a line for each that is damaged)."""
    records, problems = {}, []
    for name in _SHAPES:
        try:
            records[name] = read_one(workdir, name)
        except FileNotFoundError:
            continue
        except ValueError as e:
            problems.append(f"{e}. Put the file back as it was, or {ANEW}")
    # which is written first
    if "config.json" in records and not (workdir / "questions.json").exists():
        problems.append(
            f"{workdir / 'questions.json'}: missing. Put the file back as it was, or {ANEW}"
        )
    return records, problems


def read_one(workdir: Path, name: str) -> Any:
    """The contents of one record.

    Raises:
        ValueError: it is damaged; the message names the file.
        FileNotFoundError: there is none.
    """
    path = workdir / name
    try:
        value = json.loads(path.read_bytes())
        whole = _SHAPES[name](value)
    except (
        ValueError,
        RecursionError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        IsADirectoryError,
    ) as e:
        raise ValueError(f"{path}: damaged ({type(e).__name__}: {e})") from e
    if not whole:
        raise ValueError(f"{path}: damaged (not what a run writes)")
    return value


def strangers(workdir: Path, records: Mapping[str, Any]) -> list[str]:
    """A line if the folder holds files that a run would write, but no run."""
    if (
        "config.json" in records
        or (workdir / RUN).exists()
        or all((workdir / n).exists() for n in _NAMES[2:4])
    ):
        return []
    names = [name for name in (*_RESULTS, *_NAMES[:2], "config.json") if (workdir / name).is_file()]
    rule = "which a run would write, but no run; give another folder"
    return [f"--workdir={workdir} holds {', '.join(names)}, {rule}"] if names else []


def read_owner(
    checkpoints: epath.Path, workdir: Path, run_id: str | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """(what names the run that a checkpoint folder belongs to, a line if that is another run).

    A run is the same if its id is, or its directory: that may have been lost with its host.
    """
    path = checkpoints / OWNER
    try:
        note = json.loads(path.read_text())
        theirs = note.pop("workdir")
        if not is_run(note) or not isinstance(theirs, str):
            raise ValueError("not what a run writes")
    except (FileNotFoundError, NotADirectoryError):
        return None, []
    except (ValueError, KeyError, TypeError, AttributeError, IsADirectoryError) as e:
        return None, [
            f"{path}: damaged ({e}); if no other run has its checkpoints there, delete it"
        ]
    if note["id"] == run_id or theirs == str(workdir.resolve()):
        return note, []
    rule = (
        f"holds the checkpoints of the run in {theirs}; give another folder. If that run directory"
        f" is lost, delete {path}"
    )
    return None, [f"config.checkpoint.path={checkpoints} {rule}"]


def put_away(workdir: Path, checkpoints: epath.Path) -> Path | None:
    """Moves all that the run has written to a new folder `previous-N` in the run directory.

    Checkpoints elsewhere go to a folder beside theirs, `NAME_previous-N`. Nothing else is touched.
    Returns the new folder; None if there was nothing.
    """
    elsewhere = checkpoints != epath.Path(workdir.absolute() / "checkpoints")
    damaged = checkpoints.parent / f"{checkpoints.name}_damaged"

    def beside(n: int) -> epath.Path:
        return checkpoints.parent / f"{checkpoints.name}_previous-{n}"

    numbers = itertools.count(1)
    n = next(
        n
        for n in numbers
        if not (workdir / f"previous-{n}").exists() and not (elsewhere and beside(n).exists())
    )
    kept, moved = workdir / f"previous-{n}", False
    if elsewhere and checkpoints.exists():
        steps = [p for p in checkpoints.iterdir() if p.name.partition(".")[0].isdecimal()]
        notes = [p for p in (checkpoints / "best.json", checkpoints / OWNER) if p.exists()]
        for path in (*steps, *notes):
            beside(n).mkdir(parents=True, exist_ok=True)
            path.rename(beside(n) / path.name)
            moved = True
        if damaged.exists():
            damaged.rename(beside(n).parent / f"{beside(n).name}_damaged")
    for name in (*_FOLDERS, *_RESULTS, *_NAMES):
        beside_it = [p for kind in ("damaged", "partial") for p in workdir.glob(f"{name}.{kind}-*")]
        for path in (workdir / name, *sorted(beside_it)):
            if path.exists():
                kept.mkdir(exist_ok=True)
                path.rename(kept / path.name)
                moved = True
    return kept if moved else None


def put_away_comparison(workdir: Path) -> None:
    """Moves what a comparison has written beside the folders of its runs to a new folder
    `previous-N`.
    """
    names = [name for name in COMPARISON if (workdir / name).exists()]
    n = next(n for n in itertools.count(1) if not (workdir / f"previous-{n}").exists())
    for name in names:
        (workdir / f"previous-{n}").mkdir(exist_ok=True)
        (workdir / name).rename(workdir / f"previous-{n}" / name)
