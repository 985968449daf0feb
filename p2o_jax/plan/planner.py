"""A plan from a case: compile, add up, estimate."""

from collections.abc import Callable
from typing import Any, NamedTuple

from p2o_jax import config_rules
from p2o_jax.config import Config, ConfigError
from p2o_jax.models.spec import ModelSpec
from p2o_jax.plan import memory, programs, report
from p2o_jax.plan.advice import misses
from p2o_jax.plan.chips import Topology
from p2o_jax.plan.estimate import Workload, estimate
from p2o_jax.plan.programs import Known


class Case(NamedTuple):
    """What is planned: a model's shapes, a config, a topology, what the questions are like, dollars for a chip and hour."""

    model: str
    spec: ModelSpec
    cfg: Config
    topology: Topology
    work: Workload
    price: float | None


def plan(case: Case, tell: Callable[[str], None], known: Known | None = None) -> dict[str, Any]:
    """The figures of `report.as_json`; the step has none where a program does not fit.

    Raises:
        ConfigError: the config breaks a rule on so many devices, or libtpu or the topology is not there.
    """
    found = config_rules.problems(case.cfg, len(case.topology.devices()))
    if found:
        raise ConfigError(*found)
    parts = programs.make(case.cfg, case.spec, case.topology)
    compiled = programs.compile_all(parts, case.work.prompt, tell, {} if known is None else known)
    kept = memory.held(parts, compiled)
    loads = memory.loads(compiled, kept)
    fits = not misses(loads, case.topology.chip.hbm_gib)
    step = estimate(parts, compiled, kept, case.topology, case.work, case.price) if fits else None
    return report.as_json(case.model, parts, case.topology, compiled, loads, step, case.work)
