"""Decoding compiled for TPUs that are not there; skipped without libtpu (`pip install 'jax[tpu]'`)."""

import dataclasses
import json
import re
from collections import Counter
from types import SimpleNamespace

import pytest

from p2o_jax import config
from p2o_jax.config import Config, ConfigError
from p2o_jax.models import sharding
from p2o_jax.models.spec import ModelSpec
from p2o_jax.plan import __main__ as command
from p2o_jax.plan import chips, cost, programs
from p2o_jax.records import Sampling

SPEC = ModelSpec("qwen3", vocab=1024, width=256, layers=2, heads=4, kv_heads=2, head_dim=128, mlp=512, qk_norm=True, tied=True)


def decode_parts(topology, tensor, cache_dtype="auto"):
    cfg = config.resolve(Config())
    rollout = dataclasses.replace(
        cfg.rollout,
        questions=32,
        group_size=4,
        max_new_tokens=64,
        prompt_buckets=(64, 128),
        slots=64,
        bank_tokens=8192,
        cache_dtype=cache_dtype,
    )
    cfg = dataclasses.replace(
        cfg,
        rollout=rollout,
        mesh=dataclasses.replace(cfg.mesh, tensor=tensor),
        data=dataclasses.replace(cfg.data, max_prompt_tokens=64),
        gepa=dataclasses.replace(cfg.gepa, reflect_new_tokens=16),
    )
    return programs.make(cfg, SPEC, chips.parse(topology))


@pytest.mark.parametrize(
    ("topology", "tensor", "cache"), [("v5e:2x4", 1, "auto"), ("v5e:2x4", 2, "auto"), ("v5p:2x2x2", 1, "auto"), ("v5e:2x4", 1, "int8")]
)
def test_a_decoded_token_gathers_no_weights_visits_no_host_and_copies_no_cache(topology, tensor, cache):
    pytest.importorskip("libtpu")
    engine = decode_parts(topology, tensor, cache).engine
    decodes = [p for p in engine.needed(Sampling(1.0, 64), 64) if p.kind == "decode"]
    assert {p.group for p in decodes} == {1, 4}
    for program in decodes:
        text = engine.lower(program).compile().as_text()
        found = cost.cost(text)
        (turn,) = [loop.total([1.0] * 3) for _, loop in found.loops]
        kernels = Counter({kernel.name: 0.0 for kernel in turn.kernels})
        for kernel, n in turn.kernels.items():
            kernels[kernel.name] += n
        assert kernels == {"ragged_decode": 2 * SPEC.layers, "cache_append": SPEC.layers}  # prompt and response of each layer
        assert turn.flops > 0 and turn.host_transfers == found.host_transfers == 0
        assert not re.search(rf"\w+\[{program.size},\d,64,128\]\S* copy", text), "the slots' cache is copied"
        smallest_weight = 2 * SPEC.width * SPEC.kv_heads * SPEC.head_dim // tensor
        gathered = [c for c in turn.collectives if c.kind == "all-gather" and c.bytes >= smallest_weight]
        assert not gathered, "weights, or something as large, are gathered at every token"
        if tensor == 1:
            assert {c.kind for c in turn.collectives} == {"all-reduce"} and sum(c.bytes for c in turn.collectives) <= 8


def test_slices_lie_along_the_data_axis():
    pytest.importorskip("libtpu")
    mesh = sharding.make_mesh((2, 2, 2), chips.parse("v5e:2x2,slices=2").devices())
    assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]


def test_slices_must_divide_the_data_axis():
    devices = [SimpleNamespace(platform="tpu", slice_index=i // 4) for i in range(8)]
    with pytest.raises(ConfigError, match=r"config.mesh.data=1 must be a multiple of the number of slices, 2"):
        sharding.make_mesh((1, 8, 1), devices)


def test_the_command_tells_what_is_wrong(tmp_path):
    ask = ["--config=configs/smoke.py", "--model=qwen3-0.6b"]
    for flags, told in (
        ([*ask, "--topology=v5e"], "topology"),
        ([*ask, "--topology=v5e:2x4", "--prompt=no"], "--prompt"),
        ([*ask, "--topology=v5e:2x4", f"--out={tmp_path}"], "is a directory"),
        (["--config=configs/smoke.py", "--topology=v5e:2x4", "--model=qwen9"], "qwen3-4b"),
    ):
        with pytest.raises(ConfigError, match=told):
            command.run(flags)


def test_a_plan_from_the_command_line(tmp_path, capsys, monkeypatch):
    """The real command on a model of two small layers."""
    pytest.importorskip("libtpu")
    monkeypatch.setitem(programs.SPECS, "tiny", SPEC)
    small = {
        "rollout": {"questions": 16, "group_size": 2, "max_new_tokens": 64, "prompt_buckets": (64, 256), "slots": 16, "bank_tokens": 4096},
        "data": {"max_prompt_tokens": 64},
        "gepa": {"max_template_tokens": 64, "reflect_prompt_tokens": 128, "reflect_new_tokens": 64},
        "optim": {"micro_rows": 8, "minibatch_questions": 8},
    }
    flags = [f"--config.{section}.{key}={value}" for section, values in small.items() for key, value in values.items()]
    out = tmp_path / "plan.json"
    command.run(["--config=configs/math.py", "--topology=v5e:2x4", "--model=tiny", "--prompt=50", "--price=1.2", f"--out={out}", *flags])
    figures, text = json.loads(out.read_text()), capsys.readouterr().out
    assert figures["fits"] and "It fits." in text and figures["step"]["dollars_per_million"] > 0
    assert {m["program"].split()[0] for m in figures["memory_gib"]} == {"lay_out", "prefill", "decode", "update", "score"}
    assert all(m["total"] < 1 for m in figures["memory_gib"])
