"""One place makes the settings of the sampler, and what is compiled ahead is what it makes."""

import ast
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from p2o_jax import config
from p2o_jax.config import Config
from p2o_jax.rollout import sampling_params
from p2o_jax.rollout.gepa_adapter import GepaAdapter
from p2o_jax.startup import components
from p2o_jax.state import Ledger
from p2o_jax.types import SamplingParams

PACKAGE = Path(__file__).parents[2] / "p2o_jax"
ROLLOUT = config.RolloutConfig(temperature=0.7, top_k=20, top_p=0.9, min_p=0.05, max_new_tokens=100)
GEPA = config.GepaConfig(temperature=0.4, reflect_temperature=1.2, reflect_new_tokens=60)
CFG = config.resolve(Config(rollout=ROLLOUT, gepa=GEPA, eval=config.EvalConfig(temperature=0.3)))
TRAINING, EVALUATION = (
    SamplingParams(0.7, 100, 20, 0.9, 0.05),
    SamplingParams(0.3, 100, 20, 0.9, 0.05),
)
CANDIDATES, REFLECTION = (
    SamplingParams(0.4, 100, 20, 0.9, 0.05),
    SamplingParams(1.2, 60, 20, 0.9, 0.05),
)


def test_filters_hold_for_every_use_and_temperatures_for_their_own():
    assert (sampling_params.training(CFG), sampling_params.evaluation(CFG)) == (
        TRAINING,
        EVALUATION,
    )
    assert (sampling_params.candidates(CFG), sampling_params.reflection(CFG)) == (
        CANDIDATES,
        REFLECTION,
    )
    assert sampling_params.at(CFG, 0.6) == SamplingParams(0.6, 100, 20, 0.9, 0.05)


def constructions(source: str) -> list[int]:
    """The lines that call `SamplingParams`, by whatever module's name."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    names = (
        (
            call.lineno,
            call.func.attr
            if isinstance(call.func, ast.Attribute)
            else getattr(call.func, "id", ""),
        )
        for call in calls
    )
    return [line for line, name in names if name == "SamplingParams"]


def test_no_other_place_makes_sampling_settings():
    by_file = {
        path.relative_to(PACKAGE).as_posix(): constructions(path.read_text(encoding="utf-8"))
        for path in PACKAGE.rglob("*.py")
    }
    assert [name for name, lines in by_file.items() if lines] == ["rollout/sampling_params.py"]
    assert constructions(
        "a = SamplingParams(1.0, 1)\nb = types.SamplingParams(0.0, 2)\nc = DynamicSampling()"
    ) == [1, 2]


class Asked:
    """A sampler and an answerer that note what they are asked for."""

    def __init__(self):
        self.uses = []

    def needed(self, sampling, longest_prompt):
        self.uses.append((sampling, longest_prompt))
        return [sampling]

    def reply(self, weights, prompts, names, sampling, key):
        self.uses.append(sampling)
        return [], {}


@pytest.mark.parametrize(
    ("gepa", "expected"),
    [
        ({}, [(TRAINING, 5120), (EVALUATION, 5120), (CANDIDATES, 5120), (REFLECTION, 32768)]),
        ({"reflector": "api"}, [(TRAINING, 5120), (EVALUATION, 5120), (CANDIDATES, 5120)]),
        ({"enabled": False}, [(TRAINING, 4096), (EVALUATION, 4096)]),
    ],
)
def test_programs_of_every_use_are_compiled_ahead(gepa, expected):
    """4,096 tokens of a question, 1,024 of a template, 32,768 of a reflection prompt."""
    engine = Asked()
    programs = components.sampling_programs(replace(CFG, gepa=replace(CFG.gepa, **gepa)), engine)
    assert engine.uses == expected and programs == [sampling for sampling, _ in expected]
    assert (
        len(
            components.sampling_programs(
                config.resolve(Config(gepa=config.GepaConfig(enabled=False))), Asked()
            )
        )
        == 2
    )


def test_gepa_samples_by_these_settings():
    stages = GepaAdapter(None, None, None, CFG, None, Ledger())
    assert stages.evaluation == CANDIDATES
    pipeline = Asked()
    parts = SimpleNamespace(cfg=CFG, pipeline=pipeline, reference_params=None)
    components.Components.reflector(parts, SimpleNamespace(of=lambda params: None), None, None)(
        (), (), {}
    )
    assert pipeline.uses == [REFLECTION]


def test_an_unknown_reflector_is_an_error():
    gepa = replace(CFG.gepa, reflector="teacher")  # pyright: ignore[reportArgumentType]
    parts = SimpleNamespace(cfg=replace(CFG, gepa=gepa), pipeline=Asked(), reference_params=None)
    with pytest.raises(ValueError, match=r"config\.gepa\.reflector='teacher'"):
        components.Components.reflector(parts, SimpleNamespace(), None, None)
