"""The note beside the checkpoints that names the best state on held-out data."""

import json
from typing import NamedTuple

from etils import epath

from p2o_jax import config

FILE = "best.json"


class Best(NamedTuple):
    """The state with the highest score on held-out data so far."""

    tick: int
    step: int
    accuracy: float


def read_best(where: epath.Path) -> Best | None:
    """The state that did best on the held-out questions, if there is a note of one.

    Raises:
        ConfigError: the note is damaged.
    """
    note = parse(where, read_text(where))
    return Best(*note[:3]) if note else None


class Note(NamedTuple):
    """What the file holds: the best state, what its score was measured by, and the ticks of the
    best states by other measures.
    """

    tick: int
    step: int
    accuracy: float
    evaluation: str = ""
    before: tuple[int, ...] = ()


def read_text(where: epath.Path) -> str | None:
    """The text of the note in a checkpoint folder; None if there is none."""
    try:
        return (where / FILE).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse(where: epath.Path, text: str | None) -> Note | None:
    """The note in a text.

    Raises:
        ConfigError: it is damaged.
    """
    if text is None:
        return None
    try:
        note = Note(**json.loads(text))
        numbers = [note.tick, note.step, note.accuracy, *note.before]
        if not all(type(x) in (int, float) for x in numbers) or not isinstance(
            note.evaluation, str
        ):
            raise ValueError("not what a run writes")
    except (ValueError, TypeError, RecursionError) as e:
        raise config.ConfigError(
            f"{where / FILE}: damaged ({e}). Put the file back as it was, or delete it: the next"
            " evaluation then counts as the best"
        ) from e
    return note
