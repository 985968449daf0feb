"""Ranges of numbers: what a setting or a flag may be, in a form that code can check and the
documentation can show.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import cast

INT32_MAX = 2**31 - 1
_VERBS = {"at least 0": "not be negative", "more than 0": "be positive"}
_TECHNICAL = (
    1e6  # an upper end from here on is a limit of the implementation, named only where it is passed
)


@dataclass(frozen=True)
class Range:
    """The numbers from a lower to an upper end, each inclusive (`ge`, `le`) or exclusive (`gt`,
    `lt`), and those in `also`.

    NaN and infinities are in no range. `why` is the reason for the ends, where it is not obvious.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    also: tuple[float, ...] = ()
    why: str = ""

    def __post_init__(self) -> None:
        assert (self.ge is None) != (self.gt is None) and (self.le is None) != (self.lt is None), (
            "one lower and one upper end"
        )
        assert math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high, (
            f"{self.low} to {self.high}"
        )

    @property
    def low(self) -> float:
        """The lower bound; it is part of the range if it is `ge`."""
        return cast(float, self.gt if self.ge is None else self.ge)

    @property
    def high(self) -> float:
        """The upper bound; it is part of the range if it is `le`."""
        return cast(float, self.lt if self.le is None else self.le)

    def __contains__(self, value: float) -> bool:
        above = value > self.low or (value == self.low and self.ge is not None)
        below = value < self.high or (value == self.high and self.le is not None)
        return (above and below) or value in self.also

    def problem(self, value: float) -> str:
        """The rule that the value breaks, as "must ..."; empty if it breaks none."""
        if value in self:
            return ""
        if isinstance(value, float) and not math.isfinite(value):
            return "must be finite"
        passed = value > self.high or (value == self.high and self.lt is not None)
        text = self._end(upper=True) if passed and self.high >= _TECHNICAL else str(self)
        return f"must {_VERBS.get(text) or ('lie ' if text[:3] == 'in ' else 'be ') + text}" + (
            f": {self.why}" if self.why else ""
        )

    def __str__(self) -> str:
        """The range in words: "in [0, 1)", "at least 1", "0, or at least 0.01"."""
        also = "".join(f"{_text(x)}, or " for x in self.also)
        if self.high >= _TECHNICAL:
            return also + self._end(upper=False)
        return (
            f"{also}in {'(' if self.ge is None else '['}{_text(self.low)},"
            f" {_text(self.high)}{')' if self.le is None else ']'}"
        )

    def _end(self, upper: bool) -> str:
        if upper:
            return (
                f"at most {_text(self.high)}"
                if self.lt is None
                else f"less than {_text(self.high)}"
            )
        return f"at least {_text(self.low)}" if self.gt is None else f"more than {_text(self.low)}"


def _text(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


_LONGEST_S = 1e6
COUNT = Range(ge=1, le=INT32_MAX)
TOKENS = Range(ge=0, le=10**15)  # of a whole run
SEED = Range(
    ge=0,
    le=2**32 - 1,
    why="JAX makes keys of 32 bits, and other seeds would repeat those of smaller ones",
)
TEMPERATURE = Range(
    ge=0.01,
    le=100,
    why="below, sampling is greedy in all but name, and logits / temperature overflow",
)
TEMPERATURE_OR_GREEDY = dataclasses.replace(TEMPERATURE, also=(0,))
SECONDS = Range(ge=0.001, le=_LONGEST_S, why="timers of the system count milliseconds, in 32 bits")
SECONDS_OR_OFF = dataclasses.replace(SECONDS, also=(0,))
