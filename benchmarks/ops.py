"""The time of a jitted program by kind of operation, from XLA's trace (CPU)."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

KINDS = {  # the first kind with a word in an operation's name counts
    "products": (
        "dot",
        "ynn",
        "convolution",
    ),  # ynn: XLA's CPU library for products and what is fused with them
    "scatter, gather": ("scatter", "gather"),
    "moving": ("copy", "transpose", "dynamic", "concatenate", "slice", "pad", "broadcast"),
}
OTHER = "elementwise, reductions"
CONTAINERS = ("while", "call", "conditional")  # their time is that of the operations inside


def seconds_by_kind(run: Callable[[], None]) -> dict[str, float]:
    """The seconds of all operations that `run` executes on this process's CPU devices, by kind.

    Seconds are summed over threads. `run` must be compiled already.
    """
    import jax

    seconds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    if any(
                        name == "hlo_op" for name, _ in event.stats
                    ) and not event.name.startswith(CONTAINERS):
                        seconds[kind_of(event.name)] += event.duration_ns
    return {kind: round(ns / 1e9, 3) for kind, ns in seconds.most_common()}


def kind_of(operation: str) -> str:
    """The kind of an operation, from XLA's name for it."""
    return next(
        (kind for kind, words in KINDS.items() if any(word in operation for word in words)), OTHER
    )
