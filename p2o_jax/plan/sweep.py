"""Compares layouts of a config on a topology.

Layouts that fit are ranked by step time. The others are listed with the reason why they do not.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from p2o_jax import config
from p2o_jax.config import Config, ConfigError
from p2o_jax.plan.planner import Case, plan
from p2o_jax.plan.programs import CompileOptions, ProgramCache

AXES = ("fsdp", "tensor", "remat", "batch", "cache")
MAX_TENSOR = 8


def run(
    case: Case, axes: Sequence[str], log: Callable[[str], None], options: CompileOptions
) -> dict[str, Any]:
    """Plans every layout that varies the given axes.

    A layout that breaks a rule is included with the rule.

    Raises:
        ConfigError: an axis is unknown.
    """
    wrong = [axis for axis in axes if axis not in AXES]
    if wrong:
        raise ConfigError(f"--sweep={','.join(axes)}: expected some of {','.join(AXES)}")
    known: ProgramCache = {}
    tried = []
    for name, cfg in layouts(case.cfg, axes, len(case.topology.devices())):
        log(name)
        try:
            figures = plan(case._replace(cfg=cfg), log, known, options)
            why = figures["advice"]
        except ConfigError as e:
            figures, why = None, list(e.problems)
        seconds = figures["step"]["seconds"] if figures and figures["step"] else None
        tried.append({"layout": name, "seconds": seconds, "why_not": why, "plan": figures})
    return {"layouts": sorted(tried, key=lambda t: (t["seconds"] is None, t["seconds"] or 0.0))}


def layouts(cfg: Config, axes: Sequence[str], devices: int) -> Iterator[tuple[str, Config]]:
    """Yields the name and config of each layout.

    The axes fsdp and tensor take powers of two; the data axis has the remaining chips.
    """
    data, fsdp, tensor = config.mesh_shape(cfg.mesh, devices)
    powers = [2**n for n in range(devices.bit_length()) if devices % 2**n == 0]
    tensors = [n for n in powers if n <= MAX_TENSOR] if "tensor" in axes else [tensor]
    remats = ("full", "dots") if "remat" in axes else (cfg.model.remat,)
    caches = ("auto", "int8") if "cache" in axes else (cfg.rollout.cache_dtype,)
    for t, remat, cache in itertools.product(tensors, remats, caches):
        for f in (
            [n for n in powers if devices % (n * t) == 0]
            if "fsdp" in axes
            else [devices // t // data if devices % (t * data) == 0 else fsdp]
        ):
            d = devices // (f * t)
            least = d * f
            for rows in (
                sorted({least, 2 * least, cfg.optim.micro_rows})
                if "batch" in axes
                else [max(cfg.optim.micro_rows, least)]
            ):
                layout = dataclasses.replace(
                    cfg,
                    mesh=dataclasses.replace(cfg.mesh, data=d, fsdp=f, tensor=t),
                    model=dataclasses.replace(cfg.model, remat=remat),
                    optim=dataclasses.replace(cfg.optim, micro_rows=rows),
                    rollout=dataclasses.replace(cfg.rollout, cache_dtype=cache),
                )
                yield (
                    f"data {d} x fsdp {f} x tensor {t}, remat {remat}, {rows} rows, cache {cache}",
                    layout,
                )


def as_text(figures: dict[str, Any]) -> str:
    """Formats the layouts as a table, best first."""
    lines = [
        "| layout | s a step, at best | tokens/s | MFU | least headroom, GiB | why not |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for tried in figures["layouts"]:
        planned = tried["plan"]
        headroom, step = "", None
        if planned:
            largest = max(m["total"] for m in planned["memory_gib"])
            headroom, step = f"{planned['limit_gib'] - largest:.2f}", planned["step"]
        shown = (
            [f"{step['seconds']:.1f}", f"{step['tokens_per_s']:,.0f}", f"{step['mfu']:.1%}"]
            if step
            else ["", "", ""]
        )
        lines.append(
            f"| {tried['layout']} | {' | '.join(shown)} | {headroom} |"
            f" {'; '.join(tried['why_not'][:1])} |"
        )
    return "\n".join(lines)
