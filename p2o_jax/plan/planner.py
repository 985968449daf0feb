"""A plan from a case: compile, add up, estimate."""

from collections.abc import Callable
from typing import Any, NamedTuple

from p2o_jax.config import Config, ConfigError, rules
from p2o_jax.models.spec import ModelSpec
from p2o_jax.plan import memory, programs, report
from p2o_jax.plan.advice import misses
from p2o_jax.plan.chips import GPUS, Topology
from p2o_jax.plan.estimate import Workload, estimate
from p2o_jax.plan.programs import DEPTHS, How, Known


class Case(NamedTuple):
    """What is planned: a model's shapes, a config, a topology, what the questions are like,
    dollars for a chip and hour.
    """

    model: str
    spec: ModelSpec
    cfg: Config
    topology: Topology
    work: Workload
    price: float | None


def plan(
    case: Case, log: Callable[[str], None], known: Known | None = None, how: How | None = None
) -> dict[str, Any]:
    """The figures of `report.as_json`; the step has none where a program does not fit.

    Raises:
        ConfigError: the config breaks a rule on so many devices, or libtpu or the topology is not
            there.
    """
    found = rules.problems(case.cfg, len(case.topology.devices()))
    if found:
        raise ConfigError(*found)
    parts = programs.make(case.cfg, case.spec, case.topology)
    compiled = programs.compile_all(
        parts, case.work.prompt, log, {} if known is None else known, how or How()
    )
    kept = memory.held(parts, compiled)
    loads = memory.loads(compiled, kept)
    fits = not misses(loads, case.topology.chip.hbm_gib)
    step = estimate(parts, compiled, kept, case.topology, case.work, case.price) if fits else None
    return report.as_json(case.model, parts, case.topology, compiled, loads, step, case.work) | {
        "notes": _notes(case, how or How())
    }


def _notes(case: Case, how: How) -> list[str]:
    """What is otherwise than in the programs that a run compiles."""
    notes = []
    if case.topology.kind in GPUS:
        notes.append(
            "Attention of update and scoring is XLA's here, in chunks of queries: cuDNN's cannot be"
            " compiled without a GPU. It takes more memory than that."
        )
    if how.quick and case.spec.layers > max(DEPTHS):
        notes.append(
            f"Quick: prefill and decoding are carried on from those of {DEPTHS[0]} and {DEPTHS[1]}"
            " layers."
        )
    return notes
