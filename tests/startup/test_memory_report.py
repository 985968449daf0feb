"""The table of bytes per chip: what is kept counted by hand, and what is estimated against the
compilers' figures.
"""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import jax
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
    assert footprint.gradients == 2 * footprint.params and footprint.reference == 0
    state = footprint.params + footprint.optimizer
    assert 0 < footprint.checkpoint - state < 64, "and a counter"
    assert 8 * footprint.process > memory_report.RUNTIME - 8, "a process, not each device, has it"
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
    footprint = memory_report.Footprint(*(n * GIB for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 99)))
    lines = footprint.table()
    assert len(lines) == 14 and len({len(line.split("GiB")[0]) for line in lines[1:]}) == 1, (
        "a line each, figures below each other"
    )
    sums = [line.split() for line in lines if line.startswith("  while")]
    assert [row[1:] for row in sums] == [
        [name, f"{total}.00", "GiB", "of", "99.00", "GiB"]
        for name, total in (("sampling", 31), ("updating", 31), ("saving", 25))
    ]
    assert "estimate" in lines[6] and "KV cache" in lines[5] and "5.00" in lines[5]


# what is largest: (layers, vocab, rows, tokens of a row)
SIZES = {
    "layers": (3, 192, 8, 96),
    "long rows": (3, 192, 4, 512),
    "logits": (2, 8192, 4, 48),
    "optimizer": (2, 8192, 1, 48),
}


COMPILED_IN_MAKE_TEST = {
    ("layers", "none"),
    ("layers", "full"),
    ("long rows", "none"),
    ("long rows", "full"),
    ("logits", "none"),
}


@pytest.mark.parametrize(
    ("largest", "remat"),
    [
        pytest.param(*case, marks=[] if case in COMPILED_IN_MAKE_TEST else pytest.mark.slow)
        for case in itertools.product(SIZES, ("none", "dots", "full"))
    ],
)
def test_an_update_takes_what_the_compiler_says_on_a_cpu(largest, remat):
    layers, vocab, rows, row_tokens = SIZES[largest]
    spec = make_spec(vocab=vocab, layers=layers, width=128, mlp=256, head_dim=32)
    cfg = settings()
    cfg = replace(
        cfg,
        model=replace(cfg.model, remat=remat),
        optim=replace(cfg.optim, micro_rows=rows, row_tokens=row_tokens),
    )
    learner = Learner(
        spec, sharding.make_mesh((1, 1, 1), jax.devices()[:1]), cfg, 10, jnp.float32, 0
    )
    (_, update), *_ = learner.programs()
    gradients = memory_report._in_float32(learner.abstract_state().params)
    estimated = sum(memory_report._update(cfg, learner, gradients))
    compiled = update.compile().memory_analysis().temp_size_in_bytes
    assert estimated == pytest.approx(compiled, rel=0.2)


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
