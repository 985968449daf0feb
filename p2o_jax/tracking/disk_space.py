"""Whether the disk has space for a run's checkpoints."""

import os
from pathlib import Path

from p2o_jax import config
from p2o_jax.tracking.checkpoint import directory


def problems(
    workdir: Path,
    cfg: config.CheckpointConfig,
    state_bytes: int,
    num_steps: int,
    restart: bool = False,
) -> list[str]:
    """A line if the disk has no space for the checkpoints that are planned, one in writing
    included.

    Args:
        workdir: the run directory.
        cfg: `config.checkpoint`.
        state_bytes: of one checkpoint.
        num_steps: policy steps of the whole run.
        restart: the run begins anew, and the checkpoints that exist are kept. Otherwise they are
            among those planned.
    """
    where = directory(workdir, cfg)
    if "://" in str(where):
        return []
    milestones = num_steps // cfg.keep_every if cfg.keep_every else 0
    planned = cfg.keep + 2 + milestones  # the best, and the one in writing
    existing = next(p for p in (Path(where), *Path(where).parents) if p.exists())
    there = (
        sum(p.stat().st_size for p in Path(where).rglob("*") if p.is_file())
        if Path(where).exists() and not restart
        else 0
    )
    free = os.statvfs(existing).f_bavail * os.statvfs(existing).f_frsize
    if planned * state_bytes <= free + there:
        return []
    return [
        f"{where}: {free / 2**30:.1f} GiB are free, and up to {planned} checkpoints of"
        f" {state_bytes / 2**30:.1f} GiB are planned (config.checkpoint.keep={cfg.keep}, the best,"
        f" one in writing, {milestones} of config.checkpoint.keep_every={cfg.keep_every})"
    ]
