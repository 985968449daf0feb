"""Named scopes let a profile of the learner and the sampler be read by phase and block."""

import re

import jax
import jax.numpy as jnp

from p2o_jax.config import RolloutConfig
from p2o_jax.rollout.engine import Engine
from p2o_jax.types import SamplingParams
from tests.factories import single_device_mesh
from tests.rl.reference import SPEC, make_config, make_learner

BLOCKS = ("embed", "layer", "attention", "mlp", "norm")


def scopes(lowered: jax.stages.Lowered) -> set[str]:
    """Returns all words in the names of a program's operations."""
    names = re.findall(r'loc\("([^"]*)"(?!:)', lowered.as_text(debug_info=True))  # not files
    return {word for name in names for word in re.findall(r"\w+", name)}


def test_the_learner_s_programs_name_their_phases_and_blocks():
    programs = dict(make_learner(make_config()).programs())
    update = scopes(programs["update"])
    assert update >= {*BLOCKS, "update", "forward_backward", "logprobs", "accumulate", "optimizer"}
    assert scopes(programs["score"]) >= {*BLOCKS, "score", "logprobs"}


def test_the_sampler_s_programs_name_their_phases_and_blocks():
    cfg = RolloutConfig(
        questions=2, group_size=2, slots=4, prompt_buckets=(8,), prompt_cache_tokens=64
    )
    engine = Engine(SPEC, single_device_mesh(), cfg, [8], [1], 0, jnp.float32)
    programs = {p.kind: p for p in engine.needed(SamplingParams(1.0, 8), 8)}
    decode = scopes(engine.lower(programs["decode"]))
    assert decode >= {*BLOCKS, "decode_step", "refill", "lm_head", "sample_token"}
    assert scopes(engine.lower(programs["prefill"])) >= {*BLOCKS, "prefill"}
