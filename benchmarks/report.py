"""The end of a benchmark: a JSON line with its figures, targets, versions and machine."""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from p2o_jax.config import ConfigError


class Target(NamedTuple):
    """A bound on a figure."""

    figure: str
    op: Literal[">=", "<="]
    value: float


def finish(
    bench: str, figures: Mapping[str, Any], targets: Mapping[str, Target]
) -> dict[str, bool]:
    """Prints the benchmark's JSON line and returns which targets are met.

    The line has the keys bench, figures, targets, met, versions and machine. A target is not met if
    its figure is missing or not a number.
    """
    from p2o_jax.startup import versions

    met = {name: is_met(figures.get(target.figure), target) for name, target in targets.items()}
    line = {
        "bench": bench,
        "figures": dict(figures),
        "targets": {name: target._asdict() for name, target in targets.items()},
        "met": met,
        "versions": versions.installed(),
        "machine": machine(),
    }
    print(json.dumps(line), flush=True)
    return met


def is_met(figure: Any, target: Target) -> bool:
    """Whether the figure meets the target."""
    if not isinstance(figure, int | float) or isinstance(figure, bool):
        return False
    return figure >= target.value if target.op == ">=" else figure <= target.value


def own_folder(given: str, temporary: str) -> Path:
    """The folder that a benchmark writes to and deletes in.

    This is `temporary` unless a folder is given, which must be new or empty.

    Raises:
        ConfigError: the given folder is not empty.
    """
    folder = Path(given or temporary)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--folder={folder}: must be new or empty")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def machine() -> dict[str, Any]:
    """Processor, cores available to this process, memory, and JAX's devices."""
    import jax

    kinds = [d.device_kind for d in jax.devices()]
    return {
        "cpu": _cpu_model(),
        "cores": (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "memory_gib": _memory_gib(),
        "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else []:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
