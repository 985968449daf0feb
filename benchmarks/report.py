"""How a benchmark ends: one JSON line with its figures, its targets, and where they were measured."""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from p2o_jax.config import ConfigError


class Target(NamedTuple):
    """What a figure should be."""

    figure: str
    op: Literal[">=", "<="]
    value: float


def finish(
    bench: str, figures: Mapping[str, Any], targets: Mapping[str, Target]
) -> dict[str, bool]:
    """Which targets are met, after printing the benchmark's JSON line: bench, figures, targets,
    met, versions, machine.

    A target whose figure is missing, None or not a number is not met.
    """
    from p2o_jax.startup import run_directory

    met = {name: is_met(figures.get(target.figure), target) for name, target in targets.items()}
    line = {
        "bench": bench,
        "figures": dict(figures),
        "targets": {name: target._asdict() for name, target in targets.items()},
        "met": met,
        "versions": run_directory.versions(),
        "machine": machine(),
    }
    print(json.dumps(line), flush=True)
    return met


def is_met(figure: Any, target: Target) -> bool:
    """Whether the figure is what the target asks for."""
    if not isinstance(figure, int | float) or isinstance(figure, bool):
        return False
    return figure >= target.value if target.op == ">=" else figure <= target.value


def own_folder(given: str, temporary: str) -> Path:
    """The folder that a benchmark writes to and deletes in: the temporary one unless one is given,
    which must be new or empty.

    Raises:
        ConfigError: there is something in it.
    """
    folder = Path(given or temporary)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--folder={folder}: must be new or empty")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, and JAX's devices."""
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
