"""Formats a plan as text and as JSON."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from p2o_jax.models.spec import num_params
from p2o_jax.plan.advice import advice, misses
from p2o_jax.plan.chips import GIB, Topology
from p2o_jax.plan.estimate import Estimate, PhaseCost, Workload
from p2o_jax.plan.memory import Load
from p2o_jax.plan.minimum import Exchange
from p2o_jax.plan.programs import CompiledProgram, PlannedRun

COLUMNS = ("params", "optimizer", "reference", "weights", "caches", "temporaries", "code")


def as_text(figures: Mapping[str, Any]) -> str:
    """Formats the result of `as_json` as text."""
    limit = figures["limit_gib"]
    mesh = " x ".join(f"{name} {size}" for name, size in figures["mesh"].items())
    model = f"{figures['model']}, {figures['parameters'] / 1e9:.2f} billion parameters"
    lines = [f"{model}, on {figures['topology']}: {mesh}, {figures['slots']} slots", ""]
    lines += [f"GiB on a chip, of {limit}:"]
    lines += _table(
        ["program", *COLUMNS, "total", "headroom"],
        [
            [m["program"], *(m[c] for c in COLUMNS), m["total"], limit - m["total"]]
            for m in figures["memory_gib"]
        ],
    )
    lines += ["", *(figures["advice"] or ["It fits."])]
    decode = figures["per_token"]
    if decode:
        sent = ", ".join(
            f"{t['count']:g} {kind} of {t['bytes']:,.0f} bytes"
            for kind, t in decode["collectives"].items()
        )
        lines += [
            "",
            f"A decode step, all slots together: {sent or 'no collectives'};"
            f" {decode['host_transfers']:g} host transfers.",
        ]
    lines += _step_lines(figures)
    return "\n".join(lines + [f"\n{note}" for note in figures.get("notes", ())])


def _step_lines(figures: Mapping[str, Any]) -> list[str]:
    """The lower bound on the time of a step as lines; none where it is not estimated."""
    step = figures["step"]
    if not step:
        return []
    lines = [
        "",
        "Lower bound on the time of a step, per chip (compute, memory and network at peak"
        " speed; the longest counts):",
    ]
    lines += _table(
        [
            "phase",
            "TFLOP",
            "compute s",
            "memory s",
            "network s",
            "seconds",
            "bound by",
            "collectives (GB)",
        ],
        [
            [
                p["name"],
                p["flops"] / 1e12,
                *p["resources"].values(),
                p["seconds"],
                p["bound"],
                _shown(p["collectives"]),
            ]
            for p in step["phases"]
        ],
    )
    lines += ["", _exchanged(step["update_exchange"])]
    if step["lay_outs"]:
        seconds = step["lay_outs"] * step["phases"][0]["seconds"]
        lines.append(
            f"An iteration of GEPA reshards {step['lay_outs']} models, in {seconds:.2g} s. This"
            " is not included in its share."
        )
    work = figures["workload"]
    lines += [
        "",
        f"{step['seconds']:.1f} s a step, {step['tokens_per_s']:,.0f} generated tokens/s, MFU"
        f" {step['mfu']:.1%}"
        + (
            f", ${step['dollars_per_million']:.3f} for a million generated tokens"
            if step["dollars_per_million"]
            else ""
        ),
        f"Assumptions: prompts of {work['prompt']} and responses of {work['response']} tokens"
        f" on average, {work['questions']} questions per epoch, {work['frac_hard']:.0%} of"
        " them hard. Real runs are slower than this bound.",
    ]
    return lines


def as_json(
    model: str,
    parts: PlannedRun,
    topology: Topology,
    programs: Mapping[str, CompiledProgram],
    loads: Sequence[Load],
    step: Estimate | None,
    work: Workload,
) -> dict[str, Any]:
    """All figures of a plan.

    Args:
        model: the model's name.
        parts: the planned run.
        topology: the chips.
        programs: the compiled programs, by name.
        loads: their memory.
        step: the estimate of a step, or None if a program does not fit.
        work: the assumed questions.
    """
    limit, shards = topology.chip.hbm_gib, parts.engine.num_shards
    cfg = replace(parts.cfg, rollout=parts.engine.cfg)  # with the chosen number of slots
    return {
        "model": model,
        "parameters": num_params(parts.spec.base),
        "topology": str(topology),
        "mesh": dict(parts.mesh.shape),
        "slots": parts.engine.cfg.slots,
        "limit_gib": limit,
        "memory_gib": [
            {"program": load.program} | {c: _gib(getattr(load, c)) for c in (*COLUMNS, "total")}
            for load in loads
        ],
        "fits": not misses(loads, limit),
        "advice": [advice(load, cfg, shards, limit) for load in misses(loads, limit)],
        "compile_s": {name: round(p.seconds, 1) for name, p in programs.items()},
        "cpu_s": round(time.process_time(), 1),
        "workload": work._asdict(),
        "per_token": _per_token(programs),
        "step": _step(step, topology) if step else None,
    }


def _per_token(programs: Mapping[str, CompiledProgram]) -> dict[str, Any] | None:
    """The data that a step of the first decode loop exchanges with other chips and the host."""
    decode = next((p for name, p in programs.items() if name.startswith("decode") and p.cost), None)
    if decode is None or decode.cost is None:
        return None
    turn = decode.cost.loops[0][1].total([1.0, 1.0])  # loops in it fill slots
    kinds: dict[str, list[float]] = {}
    for collective, n in turn.collectives.items():
        count, size = kinds.get(collective.kind, [0, 0])
        kinds[collective.kind] = [count + n, size + n * collective.bytes]
    return {
        "collectives": {k: {"count": c, "bytes": b} for k, (c, b) in kinds.items()},
        "host_transfers": turn.host_transfers,
    }


def _step(step: Estimate, topology: Topology) -> dict[str, Any]:
    return {
        "phases": [_phase(p, topology) for p in step.phases],
        "seconds": step.seconds,
        "tokens_per_s": step.generated_tokens / step.seconds,
        "mfu": step.mfu,
        "dollars_per_million": step.dollars_per_million,
        "update_exchange": _exchange(step.exchange),
        "lay_outs": step.lay_outs,
    }


def _exchange(exchange: Exchange) -> dict[str, Any]:
    return {
        "sent": dict(sorted(exchange.sent.items())),
        "minimum": exchange.minimum,
        "ratio": exchange.ratio,
    }


def _exchanged(exchange: Mapping[str, Any]) -> str:
    if exchange["ratio"] is None:
        return "A micro-batch of the update needs no exchange."
    sent = ", ".join(f"{kind} {size / 1e9:.3g}" for kind, size in exchange["sent"].items())
    return (
        f"A micro-batch of the update sends {exchange['ratio']:.2f} x the minimum of FSDP per chip"
        f" ({exchange['minimum'] / 1e9:.3g} GB); in GB: {sent}."
    )


def _phase(phase: PhaseCost, topology: Topology) -> dict[str, Any]:
    times = phase.seconds(topology)
    bound = max(times, key=lambda resource: times[resource])
    return {
        "name": phase.name,
        "flops": phase.flops,
        "resources": times,
        "seconds": times[bound],
        "bound": bound,
        "bytes": {"hbm": phase.hbm, "ici": phase.ici, "dcn": phase.dcn},
        "collectives": {
            kind: {"count": t.count, "bytes": t.bytes} for kind, t in sorted(phase.traffic.items())
        },
    }


def _shown(collectives: Mapping[str, Mapping[str, float]]) -> str:
    return (
        ", ".join(
            f"{kind} {t['count']:,.0f} ({t['bytes'] / 1e9:.3g})" for kind, t in collectives.items()
        )
        or "none"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table."""
    shown = [
        [f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows
    ]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *shown)]


def _gib(size: float) -> float:
    return round(size / GIB, 3)
