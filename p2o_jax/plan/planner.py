"""Makes a plan: compiles the programs, adds up their memory, and estimates a step."""

from collections.abc import Callable
from typing import Any, NamedTuple

from p2o_jax.config import Config, ConfigError, rules
from p2o_jax.models.spec import ModelSpec
from p2o_jax.plan import memory, programs, report
from p2o_jax.plan.advice import misses
from p2o_jax.plan.chips import GPUS, Topology
from p2o_jax.plan.estimate import Workload, estimate
from p2o_jax.plan.programs import CompileOptions, ProgramCache, small_depths


class Case(NamedTuple):
    """The input of a plan."""

    model: str  # its name
    spec: ModelSpec
    cfg: Config
    topology: Topology
    work: Workload
    price: float | None  # dollars per chip and hour


def plan(
    case: Case,
    log: Callable[[str], None],
    known: ProgramCache | None = None,
    options: CompileOptions | None = None,
) -> dict[str, Any]:
    """Returns the figures of `report.as_json`, without a step if a program does not fit.

    `known` holds programs that are already compiled, and receives the new ones.

    Raises:
        ConfigError: the config breaks a rule on this number of devices, or libtpu or the topology
            is missing.
    """
    if problems := rules.problems(case.cfg, len(case.topology.devices())):
        raise ConfigError(*problems)
    parts = programs.make(case.cfg, case.spec, case.topology)
    options = options or CompileOptions()
    compiled = programs.compile_all(
        parts, case.work.prompt, log, {} if known is None else known, options
    )
    kept = memory.held(parts, compiled)
    loads = memory.loads(compiled, kept)
    fits = not misses(loads, case.topology.chip.hbm_gib)
    step = estimate(parts, compiled, kept, case.topology, case.work, case.price) if fits else None
    return report.as_json(case.model, parts, case.topology, compiled, loads, step, case.work) | {
        "notes": _notes(case, options)
    }


def _notes(case: Case, options: CompileOptions) -> list[str]:
    """The differences from the programs that a run compiles."""
    notes = []
    if case.topology.kind in GPUS:
        notes.append(
            "Attention of update and scoring is XLA's here, in chunks of queries, because cuDNN's"
            " cannot be compiled without a GPU. XLA's takes more memory."
        )
    if options.quick and (depths := small_depths(case.spec)):
        notes.append(
            f"Quick: prefill and decoding are extrapolated from those of {depths[0]} and"
            f" {depths[1]} layers."
        )
    return notes
