"""What the terminal shows: a bar with rate and ETA for the phase at work, and a line for each step.
Times each phase, too.

Text that a model wrote is shown without what a terminal would obey.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# (number of units done since the last call, note: what else matters now)
Advance = Callable[..., None]


def printable(text: str) -> str:
    """The text with control characters, direction marks, lone surrogates and the like written as
    escapes; lines stay lines.
    """
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


class Reporter:
    """Phases and lines on standard error; quiet on processes other than the first.

    On a terminal the running phase has a bar. Elsewhere a phase that lasts prints a line every
    `every_s` seconds. `poll` is called wherever a phase begins or gets on, and may raise: there,
    and nowhere else, a run can be left.
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
        """Times a phase, and shows its progress through the function it yields, called with the
        number of units done since.
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
    """Units per second, blank until known."""

    def __init__(self, unit: str):
        super().__init__("")
        self.unit = unit

    def render(self, task):  # type: ignore[no-untyped-def]  # rich's own signature
        from rich.text import Text

        return Text(f"{task.speed:.1f} {self.unit}/s" if task.speed else "")
