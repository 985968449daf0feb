"""What a plan adds up from compiled programs: memory, roofline, advice, layouts. The programs
are made up; no compiler is asked.
"""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any, cast

import jax
import pytest

from p2o_jax import config
from p2o_jax.config import Config, ConfigError
from p2o_jax.models import device_memory
from p2o_jax.models.spec import DeltaNet, LayerType, ModelSpec, num_params
from p2o_jax.plan import (
    advice,
    chips,
    cost,
    estimate,
    hlo,
    memory,
    minimum,
    picture,
    programs,
    report,
    sweep,
)
from p2o_jax.plan.chips import GIB
from p2o_jax.plan.cost import Collective, Cost
from p2o_jax.plan.estimate import Workload
from p2o_jax.plan.memory import Load, ResidentBytes
from p2o_jax.plan.programs import CompiledProgram, Memory
from tests.factories import make_spec

SPEC = ModelSpec(
    "qwen3",
    vocab=64,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=32,
    qk_norm=True,
    tied=True,
)
V5E = chips.parse("v5e:2x4")


def small_config(**rollout):
    cfg = config.resolve(Config())
    sizes = {
        "questions": 32,
        "group_size": 4,
        "max_new_tokens": 64,
        "prompt_buckets": (32, 64),
        "slots": 16,
        "prompt_cache_tokens": 4096,
    } | rollout
    return dataclasses.replace(
        cfg,
        rollout=dataclasses.replace(cfg.rollout, **sizes),
        data=dataclasses.replace(cfg.data, max_prompt_tokens=32),
        optim=dataclasses.replace(cfg.optim, minibatch_questions=16, micro_rows=8),
        gepa=dataclasses.replace(
            cfg.gepa, reflect_new_tokens=16, budget="calls", max_metric_calls=64
        ),
    )


class Here(chips.Topology):
    """A topology's numbers, but the fake devices that are there."""

    def devices(self):
        return jax.devices()


@pytest.fixture(scope="module")
def parts():
    """Learner and sampler on eight fake devices; nothing is compiled."""
    return programs.make(small_config(), SPEC, Here("v5e", (2, 4), 1))


@pytest.mark.parametrize("rank", [0, 4])
def test_a_config_s_programs_are_its_own(rank):
    """All are lowered, with adapters too; the learner's take params (or adapters and the frozen
    rest) and rows of the config's lengths.
    """
    cfg = dataclasses.replace(small_config(), lora=config.LoraConfig(rank=rank))
    built = {
        program.name: program.lowered
        for program in programs.lowered(programs.make(cfg, SPEC, Here("v5e", (2, 4), 1)), prompt=20)
    }
    assert list(built) == [
        "to_rollout_layout",
        "prefill 32 in groups of 4",
        "decode 32 in groups of 4",
        "prefill 64",
        "decode 64",
        "update",
        "score",
        "score templated",
    ]
    state, frozen, rows, _ = built["update"].args_info[0]
    assert rows.token.shape == (8, 8, 32 + 64) and built["score templated"].args_info[0][
        1
    ].token.shape == (16, 8, 64 + 64)
    assert bool(frozen) == bool(rank) and ("embed" in state.params) == (rank == 0)


def test_two_depths_predict_a_third():
    """The real prefill of models of one, two and four layers: what it does and holds of the last
    is on the line through the others.
    """
    built = []
    for layers in (1, 2, 4):
        shallow = programs.make(
            small_config(), dataclasses.replace(SPEC, layers=layers), Here("v5e", (2, 4), 1)
        )
        asked = next(programs.sampler(shallow.engine, shallow.cfg, 20))
        built.append(programs.compile_one(asked, lambda line: None))
    one, two, four = built
    carried = programs.deeper(one, two, 3)
    assert (
        carried.memory.arguments == four.memory.arguments
        and carried.memory.caches == four.memory.caches
    )
    assert carried.memory.peak == pytest.approx(four.memory.peak, rel=0.05)
    assert (
        carried.cost.total([5]).flops
        == four.cost.total([5]).flops
        > 2 * two.cost.total([5]).flops
        > 0
    )


def test_loops_are_extrapolated():
    """One turn costs 10 operations and a gather with two layers, 16 and two with four: 28 and
    four with eight.
    """
    gather = Collective("all-gather", 80, (tuple(range(8)),))
    a = Cost(flops=1, loops=((1.0, Cost(flops=10, collectives={gather: 1.0})),))
    b = Cost(flops=2, loops=((1.0, Cost(flops=16, collectives={gather: 2.0})),))
    assert cost.extrapolated(a, b, 3) == Cost(
        flops=4, loops=((1.0, Cost(flops=28, collectives={gather: 4.0})),)
    )
    many = Cost(loops=((1.0, Cost(flops=10)), (1.0, Cost(flops=10))))  # a loop for each layer
    assert cost.extrapolated(Cost(loops=many.loops[:1]), many, 3).total([2]).flops == 4 * 10 * 2


def test_a_quick_plan_compiles_the_sampler_for_small_depths():
    deep = programs.make(
        small_config(), dataclasses.replace(SPEC, layers=6), Here("v5e", (2, 4), 1)
    )
    depths = programs.small_depths(deep.spec)
    names = [asked.name for asked in programs.lowered(deep, 20, depths)]
    assert (
        names[1:3]
        == ["prefill 32 in groups of 4, layers: 2", "decode 32 in groups of 4, layers: 2"]
        and len(names) == 1 + 2 * 4 + 3
    )
    built = {
        name: CompiledProgram(name, Memory((int(name[-1]),), 0, 0, 0, 0), Cost(), (), 1.0)
        for name in names
        if name[-1] in "24"
    }
    assert {p.memory.arguments for p in programs._deepened(built, 6, depths).values()} == {(6,)}
    assert list(programs._deepened(built, 6, depths)) == [
        "prefill 32 in groups of 4",
        "decode 32 in groups of 4",
        "prefill 64",
        "decode 64",
    ]
    assert programs.small_depths(SPEC) == () and programs.small_depths(deep.spec) == (2, 4)
    assert programs.small_depths(programs.SPECS["gemma3-4b"]) == (6, 12)


@pytest.mark.parametrize(
    "text",
    ["v5e", "v5e:8", "h100:2x4", "h100", "b9:8", "v5p:2x2x2x2", "v5e:2x4,slices=0x", "v5e:2x4 "],
)
def test_bad_topologies_are_told(text):
    with pytest.raises(ConfigError, match="topology"):
        chips.parse(text)


def test_topologies_are_read():
    assert (
        chips.parse("v5p:4x4x8,slices=2") == ("v5p", (4, 4, 8), 2)
        and str(chips.parse("v5p:4x4x8,slices=2")) == "v5p:4x4x8,slices=2"
    )
    assert chips.parse("v6e:4x4").chip.flops == 918e12
    assert (
        chips.parse("h200:8,slices=2") == ("h200", (8,), 2)
        and str(chips.parse("h100:8")) == "h100:8"
    )


def test_gpus_need_their_own_compiler():
    """Which no test environment has."""
    with pytest.raises(
        ConfigError, match=r"--topology=h100:8: .*pip install 'jax\[cuda13\]' nvidia-cuda-nvcc"
    ):
        chips.parse("h100:8").devices()


def test_specs_have_their_names_sizes():
    """Billions of parameters, as in the model cards."""
    sizes = {
        "qwen3-0.6b": 0.6,
        "qwen3-1.7b": 1.72,
        "qwen3-4b": 4.02,
        "qwen3-8b": 8.19,
        "qwen3-14b": 14.77,
        "qwen3-32b": 32.76,
        "gemma3-4b": 3.88,
        "olmo3-7b": 7.3,
        "smollm3-3b": 3.08,
        "qwen3.5-4b": 4.21,
        "qwen3-30b-a3b": 30.53,
        "gpt-oss-20b": 20.91,
    }
    assert {
        name: round(num_params(spec) / 1e9, 2) for name, spec in programs.SPECS.items()
    } == sizes
    with pytest.raises(ConfigError, match="qwen3-4b"):
        programs.model_spec("qwen9")


def test_memory_while_each_program_runs():
    kept = ResidentBytes(params=10, optimizer=20, reference=10, weights=5)
    built = {
        "to_rollout_layout": Memory((10,), 0, 5, 5, 1),  # its output is its temporary
        "prefill 32": Memory((4, 8, 1), 8, 2, 8, 1),  # a weight is not needed here, but stays
        "decode 32": Memory((5, 8, 1, 7), 15, 3, 8, 1),
        "update": Memory((30, 0, 2), 0, 40, 30, 1),
        "score": Memory((10, 2), 0, 9, 2, 1),
    }
    loads = memory.loads(
        {name: CompiledProgram(name, m, Cost(), (), 0.0) for name, m in built.items()}, kept
    )
    assert [load.total for load in loads] == [
        10
        + 20
        + 10
        + 0
        + 5
        + 5,  # params, optimizer, reference, -, the weights in the making, code
        10 + 20 + 10 + 5 + 8 + 3 + 5,
        10 + 20 + 10 + 5 + 15 + 4 + 5,
        10 + 20 + 10 + 42 + 5,  # the weights are freed before
        10 + 20 + 10 + 11 + 5,
    ]


def test_held_bytes_follow_the_shardings(parts):
    """Of a weight [.., width, ..] a chip of eight holds an eighth; norms are whole."""
    built = {
        name: CompiledProgram(name, Memory((123,), 0, 0, 77, 0), Cost(), (), 0.0)
        for name in ("to_rollout_layout",)
    }
    kept = memory.held(parts, built)
    norms = SPEC.layers * (2 * SPEC.width + 2 * SPEC.head_dim) + SPEC.width
    a_copy = 4 * ((num_params(SPEC) - norms) // 8 + norms)
    reference = 2 * ((num_params(SPEC) - norms) // 8 + norms)  # reflects: in bfloat16
    assert kept == ResidentBytes(
        123, pytest.approx(2 * a_copy, abs=64), pytest.approx(reference, abs=64), 77
    )
    assert memory.position_bytes(parts) == 2 * SPEC.layers * SPEC.kv_heads * SPEC.head_dim * 2


def test_splash_kernels_count_half_of_all_pairs():
    """Forward 2, dk and dv 4, dq 3 products over T²/2 pairs of C channels."""
    arrays = (
        hlo.Array("s8", (1, 6, 6)),
        hlo.Array("bf16", (16, 3072, 128)),
        hlo.Array("bf16", (8, 3072, 128)),
    )
    pairs = 16 * 3072 * 3072 / 2 * 128
    for name, products in (
        ("splash_mha_fwd_residuals", 2),
        ("splash_mha_dkv_x", 4),
        ("splash_mha_dq_x", 3),
        ("ragged_decode", 0),
    ):
        assert estimate.kernel_flops(cost.Kernel(name, arrays)) == products * 2 * pairs


def test_kernels_of_grouped_products_count_the_choices_of_a_device():
    """16384 rows, of which the device's experts have a quarter."""
    rows, weights = hlo.Array("bf16", (16384, 768)), hlo.Array("bf16", (32, 768, 2048))
    scalars = (hlo.Array("s32", (1,)), hlo.Array("s32", (33,)))
    product = cost.Kernel("ragged-dot-none", (*scalars, rows, weights))
    gradient = cost.Kernel("tgmm", (*scalars, rows, hlo.Array("bf16", (16384, 2048))))
    for kernel in (product, gradient):
        assert estimate.kernel_flops(kernel, 4) == 2 * 16384 * 768 * 2048 / 4
    assert estimate.kernel_flops(cost.Kernel("ragged-dot-metadata", scalars)) == 0


def made_programs():
    """A step's programs: 1e12 operations per iteration, gathers of 8e8 bytes per micro-batch."""
    everywhere = (tuple(range(8)),)
    gather = {Collective("all-gather", int(8e8), everywhere): 1.0}
    turn = Cost(flops=1e12, kernels={cost.Kernel("ragged_decode", ()): 2.0})
    micro = Cost(flops=1e12, collectives=gather, loops=((1.0, Cost(flops=2e12)),))
    memory = Memory((1000,), 0, 0, 500, 0)
    shapes = ((16, 16),)  # two prompts of a chunk a shard
    return {
        "to_rollout_layout": CompiledProgram(
            "to_rollout_layout", memory, Cost(collectives=gather), (), 0.0
        ),
        "prefill 32 in groups of 4": CompiledProgram(
            "prefill 32 in groups of 4",
            memory,
            Cost(flops=1e12, loops=((1.0, Cost(flops=1e11)),)),
            shapes,
            0.0,
        ),
        "decode 32 in groups of 4": CompiledProgram(
            "decode 32 in groups of 4", memory, Cost(loops=((1.0, turn),)), (), 0.0
        ),
        "update": CompiledProgram(
            "update", memory, Cost(collectives=gather, loops=((1.0, micro),)), (), 0.0
        ),
        "score": CompiledProgram("score", memory, Cost(loops=((1.0, micro),)), (), 0.0),
    }


def test_a_step_by_hand(parts):
    """32 questions x 4; prompts of 20 tokens (two chunks of 16), responses of 36; 128 * 56
    tokens in 8 rows of 96, 90 % full.
    """
    kept, work = ResidentBytes(1000, 2000, 0, 500), Workload(20, 36, 320, 0.3)
    built = estimate.estimate(parts, made_programs(), kept, V5E, work, price=1.0)
    phase = {p.name: p for p in built.phases}
    micro = 128 * 56 / (8 * 96) / 0.9
    heads = 1  # 96 * 0.9 * 36 / 56 wanted tokens a chip, in chunks of 1024
    assert phase["update"].flops == pytest.approx(micro * (1e12 + heads * 2e12))
    # the second of two updates only
    assert phase["score"].flops == pytest.approx(0.5 * micro * 3e12)
    assert phase["update"].traffic["all-gather"].count == pytest.approx(1 + micro)
    assert phase["update"].ici == pytest.approx((1 + micro) * 7e8) and phase["update"].dcn == 0
    # 32 prompts, 16 at a time; level 0, then level 1 with one earlier chunk
    assert phase["prefill"].flops == 2 * (2 * 1e12 + 1e11)
    steps = 128 * 36 / 16 / 0.9
    attention = 4 * SPEC.layers * SPEC.heads * SPEC.head_dim * 2 * (20 + 18)
    assert phase["decode"].flops == pytest.approx(steps * (1e12 + attention))
    position = memory.position_bytes(parts)
    assert phase["decode"].hbm == pytest.approx(steps * (500 + 2 * (20 / 4 + 18) * position))
    share = 64 / 10 / 128  # GEPA's 64 rollouts over ten steps
    assert phase["gepa, a step's share"].flops == pytest.approx(
        share * (phase["decode"].flops + phase["prefill"].flops)
    )
    seconds = sum(max(p.seconds(V5E).values()) for p in built.phases)
    assert built.seconds == pytest.approx(seconds) and built.generated_tokens == pytest.approx(
        128 * 36 * (1 + share)
    )
    assert phase["decode"].seconds(V5E)["compute"] == pytest.approx(phase["decode"].flops / 197e12)
    assert built.exchange.sent == {"all-gather": 7e8}
    assert built.dollars_per_million == pytest.approx(
        8 * seconds / 3600 / built.generated_tokens * 1e6
    )
    assert 0 < built.mfu < 1


def mesh_config(data, fsdp, tensor, **sections):
    return dataclasses.replace(
        small_config(), mesh=config.MeshConfig(data=data, fsdp=fsdp, tensor=tensor), **sections
    )


@pytest.mark.parametrize(
    ("mesh", "rank", "matrices"),
    [
        ((1, 8, 1), 0, 3 * 7 / 8),  # gathered twice, gradient scattered once
        ((1, 4, 2), 0, 3 * 3 / 4 / 2),  # a chip works with half of every matrix
        (
            (2, 4, 1),
            0,
            3 * 3 / 4 + 2 / 2 / 4,
        ),  # and its quarter of the gradient is reduced over two
        ((8, 1, 1), 0, None),  # nothing is split over fsdp
    ],
)
def test_the_least_that_fsdp_exchanges(mesh, rank, matrices):
    parts = programs.make(mesh_config(*mesh), SPEC, Here("v5e", (2, 4), 1))
    norms = SPEC.layers * (2 * SPEC.width + 2 * SPEC.head_dim) + SPEC.width
    expected = 0 if matrices is None else matrices * 2 * (num_params(SPEC) - norms)
    assert minimum.least(parts.spec, parts.mesh, 2) == pytest.approx(expected)


def test_frozen_weights_are_gathered_only():
    parts = programs.make(
        mesh_config(1, 8, 1, lora=config.LoraConfig(rank=4)), SPEC, Here("v5e", (2, 4), 1)
    )
    matrices = num_params(SPEC) - SPEC.layers * (2 * SPEC.width + 2 * SPEC.head_dim) - SPEC.width
    # A of q, k, v, gate and up, B of o and down; the other sides are whole everywhere
    adapters = SPEC.layers * 4 * 7 * SPEC.width
    assert minimum.least(parts.spec, parts.mesh, 2) == pytest.approx(
        7 / 8 * 2 * (2 * matrices + 3 * adapters)
    )


def test_what_an_update_exchanges_is_counted_without_the_tensor_axis():
    mesh = programs.make(mesh_config(1, 4, 2), SPEC, Here("v5e", (2, 4), 1)).mesh
    over_fsdp, over_tensor = ((0, 2, 4, 6), (1, 3, 5, 7)), ((0, 1), (2, 3), (4, 5), (6, 7))
    head = Cost(collectives={Collective("all-gather", 4000, over_fsdp): 1.0})
    micro = Cost(
        collectives={
            Collective("all-gather", 400, over_fsdp): 3.0,
            Collective("all-reduce", 800, over_tensor): 5.0,
        }
    )
    update = Cost(loops=((1.0, dataclasses.replace(micro, loops=((1.0, head),))),))
    built = minimum.exchange(SPEC, mesh, update, head_turns=2, itemsize=2)
    assert built.sent == {"all-gather": 3 * 300 + 2 * 3000} and built.ratio == pytest.approx(
        6900 / built.minimum
    )


def test_traffic_between_slices_is_counted_apart(parts):
    two = chips.parse("v5e:2x2,slices=2")
    built = estimate.estimate(
        parts, made_programs(), ResidentBytes(1000, 2000, 0, 500), two, Workload(20, 36, 320), None
    )
    update = next(p for p in built.phases if p.name == "update")
    assert update.dcn > 0 and update.ici == 0 and built.dollars_per_million is None
    assert update.seconds(two)["network"] == pytest.approx(update.dcn / two.chip.dcn_bytes)


def load(program, **kinds):
    sizes = dict.fromkeys(Load._fields[1:], 0) | {kind: int(n * GIB) for kind, n in kinds.items()}
    return Load(program, **sizes)


@pytest.mark.parametrize(
    ("kinds", "missing", "messages", "absent"),
    [
        # 19 of 15.75 GiB, 10 of them caches of 64 slots: 67 % of them are 43, in whole shards 40
        (
            {"weights": 8, "caches": 10, "params": 1},
            "3.25",
            ["slots=40 (now 64)", "cache_dtype=int8", "mesh.tensor=2"],
            ["reflector"],
        ),
        (
            {"weights": 9, "reference": 5, "caches": 6},
            "4.25",
            ["slots=16", "reflector=policy or api", "mesh.tensor=2"],
            ["int8", "kl"],
        ),
        (
            {"weights": 2, "caches": 2, "temporaries": 14},
            "2.25",
            ["fsdp"],
            ["slots", "int8", "mesh.tensor=2", "micro_rows"],
        ),
    ],
)
def test_advice_for_sampling_that_does_not_fit(kinds, missing, messages, absent):
    line = advice.advice(load("decode 32", **kinds), small_config(slots=64), 8, 15.75)
    assert line.startswith(
        f"decode 32 needs {sum(kinds.values()):.2f} of 15.75 GiB, {missing} too much: "
    )
    assert all(words in line for words in messages) and not any(words in line for words in absent)


def test_advice_for_an_update_that_does_not_fit():
    cfg = dataclasses.replace(
        small_config(), optim=dataclasses.replace(small_config().optim, micro_rows=32)
    )
    update, score = (
        load("update", params=2, optimizer=4, reference=3, temporaries=12),
        load("score", params=1),
    )
    assert advice.misses([score, update], 15.75) == [update]
    line = advice.advice(update, cfg, 8, 15.75)
    assert (
        "update needs 21.00 of 15.75 GiB, 5.25 too much: config.optim.micro_rows=16 (now 32)"
        in line
    )
    # these would not be enough
    assert "logit_chunk=512 (now 1024)" in line and "mu_dtype" not in line and "loss.kl" not in line


def test_layouts_use_all_chips_and_obey_the_rules_of_rows():
    result = dict(sweep.layouts(small_config(), ("fsdp", "tensor"), 8))
    meshes = {(c.mesh.data, c.mesh.fsdp, c.mesh.tensor) for c in result.values()}
    assert meshes == {
        (d, f, t)
        for d in (1, 2, 4, 8)
        for f in (1, 2, 4, 8)
        for t in (1, 2, 4, 8)
        if d * f * t == 8
    }
    assert all(c.optim.micro_rows % (c.mesh.data * c.mesh.fsdp) == 0 for c in result.values())
    assert len(dict(sweep.layouts(small_config(), ("remat", "batch"), 8))) == 4
    with pytest.raises(ConfigError, match="sweep"):
        sweep.run(None, ["colour"], print, programs.CompileOptions())


def test_a_picture_is_drawn(tmp_path, parts):
    built = made_programs()
    figures = report.as_json(
        "tiny",
        parts,
        V5E,
        built,
        [load("update", params=1, temporaries=2), load("score", params=1)],
        None,
        Workload(1, 1, 1),
    )
    picture.draw(figures, tmp_path / "plan.svg")
    drawn = (tmp_path / "plan.svg").read_text()
    assert drawn.startswith("<?xml") and len(drawn) > 5000


def test_text_and_json_agree(parts):
    kept, work, built = ResidentBytes(1000, 2000, 0, 500), Workload(20, 36, 320), made_programs()
    step = estimate.estimate(parts, built, kept, V5E, work, 1.0)
    figures = report.as_json("tiny", parts, V5E, built, memory.loads(built, kept), step, work)
    text = report.as_text(figures)
    assert (
        figures["fits"]
        and "It fits." in text
        and f"{figures['step']['seconds']:.1f} s a step" in text
    )
    assert (
        figures["per_token"] == {"collectives": {}, "host_transfers": 0}
        and "no collectives; 0 host transfers" in text
    )
    assert (
        all(name in text for name in built)
        and "An iteration of GEPA reshards 2 models, in " in text
    )
    too_large = report.as_json(
        "tiny", parts, V5E, built, [load("update", temporaries=20)], None, work
    )
    assert (
        not too_large["fits"]
        and too_large["advice"][0] in report.as_text(too_large)
        and too_large["step"] is None
    )
    assert math.isclose(too_large["memory_gib"][0]["total"], 20)


def test_a_decode_step_of_windows_and_delta_nets_fills_slots_and_moves_states():
    """Slots are filled in a loop inside the decode loop: once per slot and response. A slot's state
    has 4 x 8 x 6 entries of 4 bytes in each of two layers.
    """
    delta = LayerType(delta=DeltaNet(2, 4, 8, 6, conv=4))
    hybrid = make_spec(layers=4, pattern=(delta, LayerType()))
    assert device_memory.state_bytes(hybrid, 2) == 2 * 4 * 8 * 6 * 4 // 2
    # the other two read 30 positions, or a window of 24 of them
    parts = SimpleNamespace(
        spec=hybrid, engine=SimpleNamespace(longest=lambda _: 100, capacities=[50])
    )
    assert estimate._positions(cast(Any, parts), 30.0, 30.0) == 30
    parts.spec = dataclasses.replace(hybrid, pattern=(delta, LayerType(window=24)))
    assert estimate._positions(cast(Any, parts), 30.0, 30.0) == 24
    inner = Cost(flops=3.0)
    turn = Cost(flops=10.0, loops=((1.0, inner),))
    assert turn.total((8 / 100,)).flops == pytest.approx(10 + 0.08 * 3)
