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
        files.write_json(self.path, [*self.before, round(time.monotonic() - self.begin, 2)])


def read_seconds(workdir: Path) -> list[float]:
    """The seconds of each start of a run, however it ended; work that was lost and done again is
    in them.
    """
    path = workdir / "seconds.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
