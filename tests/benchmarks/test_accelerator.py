"""The benchmark of an accelerator: its arithmetic; a part that fails leaves the others."""

import dataclasses
import json
import os
import sys
import time
from types import SimpleNamespace

import jax
import pytest

from benchmarks.accelerator import (
    bounds,
    device,
    kernels,
    parts,
    quickstart,
    sampling,
    update,
)
from benchmarks.accelerator.__main__ import run
from benchmarks.accelerator.bounds import Rates
from benchmarks.accelerator.parts import TimedPart
from p2o_jax.config import ConfigError
from p2o_jax.models import sharding
from p2o_jax.models.attention import decoding, packed, reference
from p2o_jax.plan.models import SPECS
from p2o_jax.rollout.engine import Work

# Weights of device.TINY: embedding, two layers (q, k, v, o; MLP; norms), and the last norm.
TINY_WEIGHTS = (
    512 * 64 + 2 * (64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 128 + 2 * 64 + 2 * 16) + 64
)  # 106,880
POSITION_BYTES = 2 * 2 * 2 * 16 * 2  # keys and values, two layers, two heads, 16 channels, bfloat16
H100 = "NVIDIA H100 80GB HBM3"


def one_device():
    return sharding.make_mesh((1, 1, 1), jax.devices()[:1])


def test_bytes_that_decoding_reads_by_hand():
    """Prompts of 3 and 5 tokens, responses of 2 and 1: 3, 4 and 5 positions are read."""
    read = bounds.decode_bytes(device.TINY, [(3, 2), (5, 1)], steps=2)
    assert read == 2 * TINY_WEIGHTS * 2 + (3 + 4 + 5) * POSITION_BYTES == 430_592
    untied = dataclasses.replace(device.TINY, tied=False)
    assert bounds.read_weights(untied) == bounds.read_weights(device.TINY) == TINY_WEIGHTS


def test_steps_are_those_of_the_longest_response_or_of_all_in_few_slots():
    lengths = [(3, 2), (5, 1), (1, 4)]
    assert [bounds.decode_steps(lengths, slots) for slots in (1, 2, 3)] == [7, 4, 4]


def test_the_bound_of_qwen3_on_an_h100():
    """596,049,920 weights and 114,688 bytes a position: 128 sequences of 512 + 256 tokens read
    1.19 + 128 x 639.5 x 114,688 = 10.58 GB a step, so 40,531 tokens/s at 3.35 TB/s.
    """
    lengths = [(512, 256)] * 128
    spec = SPECS["qwen3-0.6b"]
    read = bounds.decode_bytes(spec, lengths, 256)
    assert read == 256 * (596_049_920 * 2 + 128 * 114_688 * 639.5)
    rate = 128 * 256 / (read / bounds.data_sheet(H100).bytes_per_s)
    assert rate == pytest.approx(40_531, rel=1e-4)


def test_the_public_sequences_are_those_of_the_published_figures():
    """nano-vllm prints 133,966 output tokens for them."""
    prompts, responses = bounds.public_requests()
    assert sum(responses) == 133_966 and sum(map(len, prompts)) == 142_827
    for lengths in (responses, [len(p) for p in prompts]):
        assert len(lengths) == 256 and 100 <= min(lengths) < max(lengths) <= 1024
    assert min(map(min, prompts)) >= 0 and max(map(max, prompts)) <= 10_000


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        (H100, (3350e9, 989e12)),
        ("NVIDIA H200", (4800e9, 989e12)),
        ("NVIDIA A100-SXM4-80GB", (2039e9, 312e12)),
        ("TPU v5 lite", (819e9, 197e12)),
        ("TPU v5", (2765e9, 459e12)),
        ("TPU v6 lite", (1638e9, 918e12)),
        ("NVIDIA H100 PCIe", (0, 0)),
        ("NVIDIA A100-SXM4-40GB", (0, 0)),
        ("cpu", (0, 0)),
    ],
)
def test_peaks_by_the_name_of_the_device(name, rates):
    assert bounds.data_sheet(name) == rates


def test_mfu_by_hand():
    """Three passes over four sequences of 64 tokens: 2 operations per weight and token, and
    4 x 2 layers x 4 heads x 16 channels for each of the 64 x 65 / 2 keys of a sequence.
    """
    operations = 3 * 4 * (2 * TINY_WEIGHTS * 64 + 4 * 2 * 4 * 16 * 64 * 65 // 2)
    assert operations == 176_947_200
    row = update.figures(device.TINY, update.TINY, 0.001, H100, Rates(1.0, 2e3 * operations))
    assert row["mfu"] == pytest.approx(operations * 1e3 / 989e12, rel=1e-3)
    assert row["of_matmul"] == 0.5 and row["tokens_per_s"] == 256_000
    unknown = update.figures(device.TINY, update.TINY, 0.001, "cpu", Rates())
    assert unknown["mfu"] is None and unknown["of_matmul"] is None


def test_the_model_of_the_update_depends_on_memory():
    names = [update.largest(gib << 30)[0] for gib in (75, 38, 8)]
    assert names == ["qwen3-1.7b", "qwen3-0.6b", "qwen3-0.6b"]


def test_figures_of_sampling_by_hand():
    """Two sequences of 3 + 2 and 5 + 1 tokens; reading takes 2 s, prefill 1 s, the call 6 s."""
    samples = sampling.Samples([(0,) * 3, (0,) * 5], [2, 1])
    read = bounds.decode_bytes(device.TINY, samples.lengths, 2)
    rates = Rates(read / 2, bounds.prefill_flops(device.TINY, samples.lengths))
    work = Work(busy=3, computed=4, steps=2, prefill_seconds=2.0, decode_seconds=4.0)
    engine = SimpleNamespace(take_work=lambda: work, cfg=SimpleNamespace(slots=2))
    row = sampling.figures(device.TINY, samples, engine, 6.0, rates, "bfloat16")
    assert row["tokens_per_s"] == 0.5 and row["decode_tokens_per_s"] == 0.75
    assert row["bound_tokens_per_s"] == 1.0 and row["of_bound"] == 0.5
    assert row["decode_bound_tokens_per_s"] == 1.5 and row["decode_of_bound"] == 0.5
    assert row["frac_slots_busy"] == 0.75 and row["prompt_tokens"] == 8 and row["tokens"] == 3
    assert "of_bound" not in sampling.figures(
        device.TINY, samples, engine, 6.0, Rates(), "bfloat16"
    )


def test_operations_of_attention_by_hand():
    """Segments of 2 and 1 tokens have 3 + 1 keys; three passes, 4 operations, 4 x 16 channels."""
    shape = kernels.TINY._replace(segments=((2, 1),))
    assert kernels.training_flops(shape) == 3 * 4 * 4 * 16 * (3 + 1)


def test_a_kernel_that_is_wrong_is_reported_with_its_figures(monkeypatch):
    """Attention that ignores segments, and decoding that ends one position early."""
    right = decoding.for_mesh(one_device(), 2, 16)
    early = right._replace(
        attend=lambda q, cache, length, row: right.attend(q, cache, length - 1, row)
    )
    monkeypatch.setattr(decoding, "for_mesh", lambda *_: early)
    monkeypatch.setattr(packed, "for_mesh", lambda mesh: _without_segments)
    shown = {}
    with pytest.raises(RuntimeError, match=r"decode \(pallas.*training \(_without_segments\)"):
        kernels.measure(one_device(), Rates(), True, shown.update)
    assert not shown["decode"]["agrees"] and shown["decode"]["error"] > kernels.DECODE_TOLERANCE
    assert not shown["training"]["agrees"] and shown["training"]["of_matmul"] is None


def _without_segments(q, k, v, segment):
    return reference.packed(q, k, v, segment * 0)


def python(code):
    return [sys.executable, "-c", code]


def test_what_a_part_printed_counts_however_it_ends():
    say = "import json; print(json.dumps({'figures': {'a': 1}}), flush=True); print('no', 3)\n"
    done = parts.call(python(say + "print(json.dumps({'card': {'device': 'x'}}))"), 30)
    assert done["status"] == "done" and done["figures"] == {"a": 1} and "log" not in done
    assert done["card"] == {"device": "x"} and done["why"] == ""
    failed = parts.call(python(say + "raise MemoryError('9 GiB')"), 30)
    assert failed["status"] == "failed" and failed["figures"] == {"a": 1}
    assert failed["why"] == "exit code 1: MemoryError: 9 GiB" and "Traceback" in failed["log"]
    killed = parts.call(python(say + "import os; os.kill(os.getpid(), 9)"), 30)
    assert killed["status"] == "failed" and "SIGKILL" in killed["why"]
    assert killed["figures"] == {"a": 1}


def test_a_part_that_hangs_is_killed_with_all_that_it_started(tmp_path):
    child = f"import time; time.sleep(2.5); open({str(tmp_path / 'late')!r}, 'w')"
    hang = 'import subprocess; print(\'{"figures": {"a": 1}}\', flush=True)\n'
    hang += f"subprocess.run([{sys.executable!r}, '-c', {child!r}])"
    row = parts.call(python(hang), 1.5)
    assert (row["status"], row["figures"]) == ("timed out", {"a": 1})
    assert "killed after 2 s" in row["why"] and row["seconds"] < 2.4
    time.sleep(1.5)
    assert not (tmp_path / "late").exists()


def test_a_part_that_fails_leaves_the_others_and_a_late_one_is_skipped():
    timed = [TimedPart("speed", 9, 0), *(TimedPart(n, 9, 0) for n in "ab"), TimedPart("c", 9, 99)]
    given = {}

    def command_of(name, rates):
        given[name] = rates
        if name == "speed":
            return python('print(\'{"figures": {"copy_gb_per_s": 2, "matmul_tflops": 3}}\')')
        return python("raise ValueError" if name == "a" else "pass")

    rows = list(parts.run_all(timed, 20, command_of))
    assert [(r["part"], r["status"]) for r in rows] == [
        ("speed", "done"),
        ("a", "failed"),
        ("b", "done"),
        ("c", "skipped"),
    ]
    assert given == {"speed": Rates(), "a": Rates(2e9, 3e12), "b": Rates(2e9, 3e12)}
    assert rows[3]["why"].endswith("s are left, and it needs 99")
    shown = parts.table(
        [{**rows[0], "part": "update", "figures": {"mfu": None, "model": "m", "update_s": 3}}]
    )
    assert shown.splitlines()[2].endswith(" | mfu unknown, model m |")
    table = parts.table(rows)
    assert "| c | skipped | 0.0 | " in table and table.count("\n") == 5


def test_a_part_gets_what_is_left_and_no_more_than_its_limit():
    part = TimedPart("a", 60, 10)
    assert [parts.allowed(part, left) for left in (480, 30, 10, 9.9, -1)] == [60, 30, 10, 0, 0]
    assert sum(p.least_s for p in parts.PARTS) < 480


def test_the_file_has_the_parts_so_far_and_earlier_lines(tmp_path, monkeypatch):
    out = tmp_path / "new" / "figures.jsonl"
    out.parent.mkdir()
    out.write_text('{"bench": "earlier"}\n')

    def two_and_the_end(*_):
        card = {"card": {"device": "x"}, "versions": {"jax": "1"}}
        yield {"part": "speed", "status": "done", "seconds": 1.0, "why": "", "figures": {}, **card}
        yield {"part": "kernels", "status": "failed", "seconds": 1.0, "why": "no", "figures": {}}
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "run_all", two_and_the_end)
    with pytest.raises(KeyboardInterrupt):
        run(["--tiny", f"--out={out}"])
    first, line = map(json.loads, out.read_text().splitlines())
    assert first == {"bench": "earlier"} and os.listdir(out.parent) == ["figures.jsonl"]
    assert [row["part"] for row in line["parts"]] == ["speed", "kernels"]
    assert line["card"] == {"device": "x"} and line["versions"] == {"jax": "1"}
    assert "card" not in line["parts"][0] and line["budget_s"] == 480 and line["date"]


def test_flags_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError) as e:
        run(["--parts=speed,none", "--seconds=0"])
    assert len(e.value.problems) == 3  # and no --out
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        run(["--tiny", f"--out={tmp_path / 'file' / 'x'}"])


def test_the_quickstart_s_accuracies_come_from_the_arms_that_have_ended(tmp_path):
    assert quickstart.figures(tmp_path) == {}
    result = {"accuracy_before": 0.1, "accuracy": 0.5, "seconds": 7.0, "generated_tokens": 9.0}
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo" / "result.json").write_text(json.dumps(result))
    (tmp_path / "p2o").mkdir()
    row = quickstart.figures(tmp_path)
    assert row == {"base": 0.1, "grpo": 0.5, "grpo_seconds": 7.0, "grpo_tokens": 9}


def check_tiny(tmp_path, capsys, names):
    out = tmp_path / "figures.jsonl"
    run(["--tiny", f"--out={out}", f"--parts={','.join(names)}"])
    printed = capsys.readouterr().out.splitlines()
    (line,) = map(json.loads, out.read_text().splitlines())
    assert json.loads(printed[-1]) == line and printed[1].startswith("| part | status |")
    rows = {row["part"]: row for row in line["parts"]}
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(names, "done"), rows
    assert line["card"]["device"] == "cpu" and "jax" in line["versions"]
    assert rows["kernels"]["figures"]["training"]["path"] == "by_length"
    public = rows["public"]["figures"]
    assert (
        public["tokens"] == sum(bounds.public_requests(16, (4, 24), 511)[1])
        and public["steps"] == 24
    )
    assert 0 < public["of_bound"] < 1
    return rows


def test_tiny_runs_on_a_cpu(tmp_path, capsys):
    check_tiny(tmp_path, capsys, ["speed", "kernels", "public"])


@pytest.mark.slow
def test_tiny_runs_all_parts(tmp_path, capsys):
    rows = check_tiny(tmp_path, capsys, parts.NAMES)
    assert 0 < rows["update"]["figures"]["of_matmul"] < 1
    assert rows["quickstart"]["figures"]["run_tokens"] > 0
