"""The table of bytes per chip: what is kept counted by hand, and what is estimated against the
TPU compiler's peaks.
"""

from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from p2o_jax import config
from p2o_jax.config import Config
from p2o_jax.models import sharding
from p2o_jax.models.spec import num_params
from p2o_jax.plan.programs import SPECS
from p2o_jax.rl.learner import Learner
from p2o_jax.rollout.engine import Engine
from p2o_jax.startup import memory_report
from tests.factories import make_spec

SPEC = make_spec(vocab=64)
GIB = 2**30


def settings(**loss):
    c = config.resolve(Config())
    return replace(
        c,
        loss=replace(c.loss, **loss),
        data=replace(c.data, max_prompt_tokens=32),
        rollout=replace(
            c.rollout,
            questions=8,
            group_size=2,
            slots=8,
            prompt_buckets=(32,),
            prompt_cache_tokens=256,
            max_new_tokens=16,
        ),
        optim=replace(c.optim, micro_rows=8, row_tokens=48, minibatch_questions=8),
    )


def measured(cfg, reference=0):
    mesh = sharding.make_mesh((2, 2, 2))
    learner = Learner(SPEC, mesh, cfg, 10, jnp.float32, 0)
    engine = Engine(SPEC, mesh, cfg.rollout, [16], (1,), 0, jnp.float32)
    return memory_report.measure(cfg, learner, engine, reference)


def test_params_and_optimizer_by_hand():
    """fsdp and tensor split each matrix in four; norms are whole on every chip. Adam has two
    moments, and some counters.
    """
    footprint = measured(settings())
    norms = SPEC.layers * (2 * SPEC.width + 2 * SPEC.head_dim) + SPEC.width
    matrices = num_params(SPEC) - norms
    by_fsdp = SPEC.width * SPEC.layers * 2  # norms over the width are split over fsdp, if at all
    assert abs(footprint.params - 4 * (matrices // 4 + norms)) <= 4 * by_fsdp
    assert 2 * footprint.params <= footprint.optimizer <= 2 * footprint.params + 64
    assert footprint.gradients == footprint.params and footprint.reference == 0
    assert measured(settings(kl="k3"), reference=777).reference == 777


def test_sampling_by_hand():
    """Weights are split over tensor only; keys and values of 2 layers, 1 of 2 heads of 8 channels,
    float32, at every position.

    A chip has room for 256 / 4 tokens of prompts, and for 2 rollouts of 16 tokens, which on CPUs
    hold copies of their prompts.
    """
    footprint = measured(settings())
    assert footprint.params < footprint.sampling_params < 4 * num_params(SPEC)
    position = 2 * SPEC.layers * 1 * SPEC.head_dim * 4
    assert 0 <= footprint.kv_cache - position * (256 // 4 + 2 * (32 + 16)) < 64, "and lengths"


def test_the_table_has_a_line_for_each_group_and_both_sums():
    footprint = memory_report.Footprint(
        1 * GIB, 2 * GIB, 3 * GIB, 4 * GIB, 5 * GIB, 6 * GIB, 7 * GIB, 8 * GIB, 9 * GIB
    )
    lines = footprint.table()
    assert len(lines) == 11 and len({len(line.split("GiB")[0]) for line in lines[1:]}) == 1, (
        "a line each, figures below each other"
    )
    assert lines[9].split()[2:] == ["21.00", "GiB", "of", "9.00", "GiB"] and lines[10].split()[
        2:4
    ] == ["21.00", "GiB"]
    assert "estimate" in lines[6] and "KV cache" in lines[5] and "5.00" in lines[5]


@pytest.mark.parametrize(
    ("model", "rows", "chips", "peak_gib"),
    [
        ("qwen3-0.6b", 16, 8, 2.36),
        ("qwen3-4b", 16, 8, 11.0),
        ("qwen3-4b", 32, 8, 13.7),
        ("qwen3-4b", 32, 16, 6.85),
    ],
)
def test_an_update_takes_about_what_the_tpu_compiler_says(model, rows, chips, peak_gib):
    """Rows of 2,048 tokens, all chips along fsdp, params and moments in float32, full
    recomputation; peaks of libtpu 0.0.42.
    """
    cfg = settings()
    cfg = replace(cfg, optim=replace(cfg.optim, micro_rows=rows, row_tokens=2048))
    mesh = SimpleNamespace(shape={"data": 1, "fsdp": chips, "tensor": 1})
    learner = SimpleNamespace(spec=SPECS[model], mesh=mesh, dtype=jnp.bfloat16)
    state = 16 * num_params(SPECS[model]) / chips  # params, moments, gradients
    estimated = (state + memory_report._update_activations(cfg, learner)) / GIB
    assert estimated == pytest.approx(peak_gib, rel=0.25)
