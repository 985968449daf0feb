"""Terminal output: a progress bar with rate and ETA for the current phase, and a line per step.

Also times each phase. Text from a model is printed without control sequences.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[..., None]  # called with the units done since the last call, and a note


def printable(text: str) -> str:
    """Escapes control characters, direction marks and unpaired surrogates, except line breaks."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


class Reporter:
    """Prints phases and lines to standard error. Silent unless `enabled`, as on process 0.

    On a terminal the current phase has a progress bar. Elsewhere a long phase prints a line every
    `every_s` seconds. `poll` is called when a phase begins or makes progress. It may raise: a run
    can be interrupted there and nowhere else.
    """

    def __init__(
        self, enabled: bool = True, every_s: float = 15.0, poll: Callable[[], None] = lambda: None
    ):
        self.enabled, self.every_s, self.poll = enabled, every_s, poll
        self.begin = time.monotonic()
        self.console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self.seconds: dict[str, float] = {}  # by phase, since `take_seconds`

    def line(self, text: str) -> None:
        """Prints a line."""
        if self.enabled:
            self.console.print(printable(text), markup=False)

    @contextmanager
    def phase(self, name: str, total: int = 0, unit: str = "") -> Iterator[Advance]:
        """Times a phase and shows its progress.

        Yields a function to call with the number of units done since its last call.
        """
        self.poll()
        start = time.monotonic()
        try:
            if self.enabled and total and self.console.is_terminal:
                with self._bar(unit) as bar:
                    task = bar.add_task(name, total=total, note="")
                    yield self._polled(lambda n, note: bar.update(task, advance=n, note=note))
            else:
                yield self._polled(self._lines(name, total, unit))
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def take_seconds(self) -> dict[str, float]:
        """Seconds by phase since the last call."""
        taken, self.seconds = self.seconds, {}
        return taken

    def _polled(self, advance: Advance) -> Advance:
        def polled(n: int, note: str = "") -> None:
            self.poll()
            advance(n, note)

        return polled

    def _bar(self, unit: str) -> Progress:
        rate = TextColumn("{task.speed:.1f} " + unit + "/s") if unit else TextColumn("")
        return Progress(
            TextColumn("{task.description:>12}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(unit) if unit else rate,
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )

    def _lines(self, name: str, total: int, unit: str) -> Advance:
        start = shown = time.monotonic()
        done = 0

        def advance(n: int, note: str) -> None:
            nonlocal done, shown
            done += n
            now = time.monotonic()
            if total and now - shown > self.every_s:
                shown, rate = now, done / (now - start)
                self.line(
                    f"{name}: {done}/{total} {unit}, {rate:.1f}/s,"
                    f" {(total - done) / max(rate, 1e-9):.0f} s left{', ' * bool(note)}{note}"
                )

        return advance


class _Rate(TextColumn):
    """The rate in units per second; blank until known."""

    def __init__(self, unit: str):
        super().__init__("")
        self.unit = unit

    def render(self, task):  # type: ignore[no-untyped-def]  # the signature of rich
        """The rate as text."""
        from rich.text import Text

        return Text(f"{task.speed:.1f} {self.unit}/s" if task.speed else "")
