"""Programs compiled for TPUs that are not there, skipped without libtpu (`pip install
'jax[tpu]'`); decoding for fake CPUs, too.
"""

import dataclasses
import json
import re
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from p2o_jax import config
from p2o_jax.config import Config, ConfigError
from p2o_jax.models import sharding
from p2o_jax.models.spec import ModelSpec
from p2o_jax.plan import __main__ as command
from p2o_jax.plan import advice, chips, cost, memory, minimum, programs
from p2o_jax.types import SamplingParams

SPEC = ModelSpec(
    "qwen3",
    vocab=1024,
    width=256,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=128,
    mlp=512,
    qk_norm=True,
    tied=True,
)


def decode_parts(topology, tensor, cache_dtype="auto", layers=SPEC.layers, **rollout):
    cfg = config.resolve(Config())
    sizes = {
        "questions": 32,
        "group_size": 4,
        "max_new_tokens": 64,
        "prompt_buckets": (64, 128),
        "slots": 64,
        "prompt_cache_tokens": 8192,
    }
    rollout = dataclasses.replace(cfg.rollout, cache_dtype=cache_dtype, **sizes | rollout)
    cfg = dataclasses.replace(
        cfg,
        rollout=rollout,
        mesh=dataclasses.replace(cfg.mesh, tensor=tensor),
        data=dataclasses.replace(cfg.data, max_prompt_tokens=64),
        gepa=dataclasses.replace(cfg.gepa, reflect_new_tokens=16),
        optim=dataclasses.replace(cfg.optim, micro_rows=16),
    )
    return programs.make(cfg, dataclasses.replace(SPEC, layers=layers), chips.parse(topology))


@pytest.mark.parametrize(
    ("topology", "tensor", "cache"),
    [
        ("v5e:2x4", 1, "auto"),
        ("v5e:2x4", 2, "auto"),
        ("v5p:2x2x2", 1, "auto"),
        ("v5e:2x4", 1, "int8"),
    ],
)
def test_a_decoded_token_gathers_no_weights_visits_no_host_and_copies_no_cache(
    topology, tensor, cache
):
    pytest.importorskip("libtpu")
    engine = decode_parts(topology, tensor, cache).engine
    decodes = [p for p in engine.needed(SamplingParams(1.0, 64), 64) if p.kind == "decode"]
    assert {p.group for p in decodes} == {1, 4}
    for program in decodes:
        text = engine.lower(program).compile().as_text()
        result = cost.cost(text)
        (turn,) = [loop.total([1.0] * 3) for _, loop in result.loops]
        kernels = Counter({kernel.name: 0.0 for kernel in turn.kernels})
        for kernel, n in turn.kernels.items():
            kernels[kernel.name] += n
        # prompt and response of each layer
        assert kernels == {
            "ragged_decode": 2 * SPEC.layers,
            "cache_append": SPEC.layers,
        }
        assert turn.flops > 0 and turn.host_transfers == result.host_transfers == 0
        assert not re.search(rf"\w+\[{program.size},\d,64,128\]\S* copy", text), (
            "the slots' cache is copied"
        )
        smallest_weight = 2 * SPEC.width * SPEC.kv_heads * SPEC.head_dim // tensor
        gathered = [
            c for c in turn.collectives if c.kind == "all-gather" and c.bytes >= smallest_weight
        ]
        assert not gathered, "weights, or something as large, are gathered at every token"
        if tensor == 1:
            assert {c.kind for c in turn.collectives} == {"all-reduce"} and sum(
                c.bytes for c in turn.collectives
            ) <= 8


class Here(chips.Topology):
    """A topology's numbers, but the fake devices that are there."""

    def devices(self):
        return jax.devices()


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_token_decoded_on_fake_devices_gathers_no_weights_and_visits_no_host(monkeypatch, tensor):
    monkeypatch.setattr(chips, "parse", lambda text: Here("v5e", (2, 4), 1))
    engine = decode_parts("", tensor, layers=1).engine
    program = next(
        p for p in engine.needed(SamplingParams(1.0, 64), 64) if p.kind == "decode" and p.group == 4
    )
    result = cost.cost(engine.lower(program).compile().as_text())
    (turn,) = [loop.total([1.0] * 3) for _, loop in result.loops]
    smallest_weight = 2 * SPEC.width * SPEC.kv_heads * SPEC.head_dim // tensor
    assert turn.flops > 0 and turn.host_transfers == result.host_transfers == 0
    assert (
        max((c.bytes for c in turn.collectives if c.kind == "all-gather"), default=0)
        < smallest_weight
    )
    if tensor == 1:
        # is anybody going, is anybody full?
        assert {(c.kind, c.bytes): n for c, n in turn.collectives.items()} == {("all-reduce", 8): 1}


def test_a_gather_of_weights_and_a_visit_to_the_host_in_a_loop_are_seen():
    """What the tests of decoding look for is found where it is: planted in a loop of unknown
    length.
    """
    mesh = sharding.make_mesh((1, 8, 1))
    split, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())

    def run(left, x, w):
        def step(state):
            left, x, w = state
            jax.debug.callback(lambda n: None, left)
            # other weights at every turn, so that the gather stays inside
            return (
                left - 1,
                x @ w,
                w / 2,
            )

        return jax.lax.while_loop(lambda state: state[0] > 0, step, (left, x, w))

    matrix = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=split)
    left = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    result = cost.cost(
        jax.jit(run, out_shardings=(whole, split, split))
        .lower(left, matrix, matrix)
        .compile()
        .as_text()
    )
    (turn,) = [loop.total([]) for _, loop in result.loops]
    assert turn.host_transfers > 0 and ("all-gather", 64 * 64 * 4) in {
        (c.kind, c.bytes) for c in turn.collectives
    }


@pytest.mark.parametrize(("topology", "tensor"), [("v5e:2x4", 1), ("v6e:4x4", 2)])
def test_an_update_exchanges_little_more_than_fsdp_must(topology, tensor):
    """No gradient is reduced whole on every chip. (On v5p those of layers as small as these are;
    Qwen3-4B's are not: docs/scale.md.)
    """
    pytest.importorskip("libtpu")
    parts = decode_parts(topology, tensor)
    update = cost.cost(dict(parts.learner.programs())["update"].compile().as_text())
    assert minimum.exchange(parts.spec, parts.mesh, update, 1, 2).ratio < 1.2
    sent = [
        c
        for c in update.loops[0][1].total((1,)).collectives
        if minimum.crosses_batch(c, parts.mesh)
    ]
    embedding = 2 * SPEC.vocab * SPEC.width // tensor
    assert (
        max(c.bytes for c in sent if c.kind == "all-reduce")
        < embedding / 2
        < max(c.bytes for c in sent if c.kind == "reduce-scatter")
    )


def test_slices_lie_along_the_data_axis():
    pytest.importorskip("libtpu")
    mesh = sharding.make_mesh((2, 2, 2), chips.parse("v5e:2x2,slices=2").devices())
    assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]


def test_an_axis_of_the_mesh_may_be_a_part_of_a_slice_s():
    pytest.importorskip("libtpu")
    mesh = sharding.make_mesh((1, 8, 2), chips.parse("v6e:4x4").devices())
    apart = [
        sum(abs(x - y) for x, y in zip(a.coords, b.coords, strict=True)) for a, b in mesh.devices[0]
    ]
    assert apart == [1] * 8  # both chips of the tensor axis are neighbours


def test_slices_must_divide_the_data_axis():
    devices = [SimpleNamespace(platform="tpu", slice_index=i // 4) for i in range(8)]
    with pytest.raises(
        ConfigError, match=r"config.mesh.data=1 must be a multiple of the number of slices, 2"
    ):
        sharding.make_mesh((1, 8, 1), devices)


def test_the_command_reports_problems(tmp_path):
    ask = ["--config=configs/smoke.py", "--model=qwen3-0.6b"]
    (tmp_path / "mine").write_text("mine")
    for flags, messages in (
        ([*ask, "--topology=v5e"], "topology"),
        ([*ask, "--topology=v5e:2x4", "--prompt=no"], "--prompt"),
        ([*ask, "--topology=v5e:2x4", "--quick=maybe"], "--quick=maybe: expected true or false"),
        ([*ask, "--topology=v5e:2x4", f"--out={tmp_path}"], "is a directory"),
        ([*ask, "--topology=v5e:2x4", f"--picture={tmp_path / 'mine'}"], "never overwritten"),
        (["--config=configs/smoke.py", "--topology=v5e:2x4", "--model=qwen9"], "qwen3-4b"),
    ):
        with pytest.raises(ConfigError, match=messages):
            command.run(flags)


def test_a_plan_from_the_command_line(tmp_path, capsys, monkeypatch):
    """The real command on a model of two small layers."""
    pytest.importorskip("libtpu")
    monkeypatch.setitem(programs.SPECS, "tiny", SPEC)
    small = {
        "rollout": {
            "questions": 16,
            "group_size": 2,
            "max_new_tokens": 64,
            "prompt_buckets": (64, 256),
            "slots": 16,
            "prompt_cache_tokens": 4096,
        },
        "data": {"max_prompt_tokens": 64},
        "gepa": {"max_template_tokens": 64, "reflect_prompt_tokens": 128, "reflect_new_tokens": 64},
        "optim": {"micro_rows": 8, "minibatch_questions": 8},
    }
    flags = [
        f"--config.{section}.{key}={value}"
        for section, values in small.items()
        for key, value in values.items()
    ]
    out = tmp_path / "plan.json"
    command.run(
        [
            "--config=configs/math.py",
            "--topology=v5e:2x4",
            "--model=tiny",
            "--prompt=50",
            "--price=1.2",
            f"--out={out}",
            *flags,
        ]
    )
    figures, text = json.loads(out.read_text()), capsys.readouterr().out
    assert figures["fits"] and "It fits." in text and figures["step"]["dollars_per_million"] > 0
    assert {m["program"].split()[0] for m in figures["memory_gib"]} == {
        "to_rollout_layout",
        "prefill",
        "decode",
        "update",
        "score",
    }
    assert all(m["total"] < 1 for m in figures["memory_gib"])


def test_decoding_that_the_compiler_refuses_is_told_with_what_would_mend_it():
    """512 slots of 16,384 positions and 2,048 bytes each are 16 GiB on a chip."""
    pytest.importorskip("libtpu")
    parts = decode_parts("v5e:2x4", 1, slots=4096, max_new_tokens=16384)
    asked = next(
        a for a in programs.sampler(parts.engine, parts.cfg, 64) if a.name.startswith("decode")
    )
    program = programs.compile_one(asked, lambda line: None)
    (load,) = memory.loads({asked.name: program}, memory.ResidentBytes(0, 0, 0, 0))
    assert program.cost is None and program.memory.peak > 16 * chips.GIB
    line = advice.advice(load, parts.cfg, 8, 15.75)
    assert (
        "of 15.75 GiB" in line
        and "too much: config.rollout.slots=" in line
        and "cache_dtype=int8" in line
    )
