"""How long a run has taken, over all its starts."""

import json
import time
from pathlib import Path

from p2o_jax.runtime import files


class Clock:
    """WORKDIR/seconds.json: the seconds of every start of the run, this one's up to the last
    `write`.
    """

    def __init__(self, workdir: Path, begin: float):
        self.path, self.begin = workdir / "seconds.json", begin
        self.before = read_seconds(workdir)
        self.write()

    def write(self) -> None:
        """Writes the seconds of all starts so far."""
        files.write_json(self.path, [*self.before, round(time.monotonic() - self.begin, 2)])


class Pace:
    """How long the rest of a run will take, at the pace of this start."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def left(self, progress: float) -> str:
        """The time left as text, once `progress`, the share of the run that is done, was given
        twice; empty before.
        """
        now = time.monotonic()
        first_time, first = self._first = self._first or (now, progress)
        if progress <= first:
            return ""
        seconds = (now - first_time) * (1 - progress) / (progress - first)
        return f"{duration(max(seconds, 0.0))} left"


def duration(seconds: float) -> str:
    """A time span in the two largest of its units: `40 s`, `12 min`, `3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def read_seconds(workdir: Path) -> list[float]:
    """The seconds of each start of a run, however it ended; work that was lost and done again is
    in them.
    """
    path = workdir / "seconds.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
