"""Layouts of a config on a topology, ranked: those that fit by the time of a step, the others
with what they miss.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from p2o_jax import config
from p2o_jax.config import Config, ConfigError
from p2o_jax.plan.planner import Case, plan
from p2o_jax.plan.programs import How, Known

AXES = ("fsdp", "tensor", "remat", "batch", "cache")
MAX_TENSOR = 8


def run(case: Case, axes: Sequence[str], log: Callable[[str], None], how: How) -> dict[str, Any]:
    """The figures of every layout of these axes; a layout that breaks a rule is there with the
    rule.

    Raises:
        ConfigError: an axis that is none.
    """
    wrong = [axis for axis in axes if axis not in AXES]
    if wrong:
        raise ConfigError(f"--sweep={','.join(axes)}: expected some of {','.join(AXES)}")
    known: Known = {}
    tried = []
    for name, cfg in layouts(case.cfg, axes, len(case.topology.devices())):
        log(name)
        try:
            figures = plan(case._replace(cfg=cfg), log, known, how)
            why = figures["advice"]
        except ConfigError as e:
            figures, why = None, list(e.problems)
        seconds = figures["step"]["seconds"] if figures and figures["step"] else None
        tried.append({"layout": name, "seconds": seconds, "why_not": why, "plan": figures})
    return {"layouts": sorted(tried, key=lambda t: (t["seconds"] is None, t["seconds"] or 0.0))}


def layouts(cfg: Config, axes: Sequence[str], devices: int) -> Iterator[tuple[str, Config]]:
    """Each layout's name and config: fsdp and tensor in powers of two, the rest of the chips on
    the data axis.
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
                made = dataclasses.replace(
                    cfg,
                    mesh=dataclasses.replace(cfg.mesh, data=d, fsdp=f, tensor=t),
                    model=dataclasses.replace(cfg.model, remat=remat),
                    optim=dataclasses.replace(cfg.optim, micro_rows=rows),
                    rollout=dataclasses.replace(cfg.rollout, cache_dtype=cache),
                )
                yield (
                    f"data {d} x fsdp {f} x tensor {t}, remat {remat}, {rows} rows, cache {cache}",
                    made,
                )


def as_text(figures: dict[str, Any]) -> str:
    """A line for each layout, the best first."""
    lines = [
        "| layout | s a step, at best | tokens/s | MFU | least head-room, GiB | why not |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for tried in figures["layouts"]:
        made = tried["plan"]
        head_room = (
            f"{made['limit_gib'] - max(m['total'] for m in made['memory_gib']):.2f}" if made else ""
        )
        step = made["step"] if made else None
        shown = (
            [f"{step['seconds']:.1f}", f"{step['tokens_per_s']:,.0f}", f"{step['mfu']:.1%}"]
            if step
            else ["", "", ""]
        )
        lines.append(
            f"| {tried['layout']} | {' | '.join(shown)} | {head_room} |"
            f" {'; '.join(tried['why_not'][:1])} |"
        )
    return "\n".join(lines)
