"""What benchmarks print, and that they run."""

import ast
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gepa as gepa_bench
from benchmarks import load, memory, quick, report, resume, update_memory
from benchmarks.report import Target
from p2o_jax import config
from p2o_jax.config import ConfigError
from p2o_jax.data.chat import Chat, load_tokenizer
from p2o_jax.models import hf_config
from p2o_jax.startup import memory_report

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path for folder in ("benchmarks", "docs", "examples") for path in (ROOT / folder).rglob("*.py")
)


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_finish_prints_one_json_line(capsys):
    targets = {
        "fast": Target("seconds", "<=", 2),
        "good": Target("gain", ">=", 0.2),
        "there": Target("missing", ">=", 0),
    }
    met = report.finish("toy", {"seconds": 2.0, "gain": 0.1}, targets)
    line = last_line(capsys)
    assert list(line) == ["bench", "figures", "targets", "met", "versions", "machine"]
    assert line["bench"] == "toy" and line["figures"] == {"seconds": 2.0, "gain": 0.1}
    assert line["met"] == met == {"fast": True, "good": False, "there": False}
    assert line["targets"]["good"] == {"figure": "gain", "op": ">=", "value": 0.2}
    assert (
        "jax" in line["versions"]
        and line["machine"]["cores"] >= 1
        and line["machine"]["devices"] == {"cpu": 8}
    )


def test_load_reads_what_it_wrote(tmp_path, capsys):
    load.run(["--size=tiny", f"--folder={tmp_path}"])
    figures = last_line(capsys)["figures"]
    assert figures["files"] == 2 and figures["param_gb"] == round(
        2 * figures["parameters"] / 1e9, 3
    )
    assert figures["peak_rss_gb"] > 0 and list(tmp_path.iterdir()) == []


def test_the_sums_of_a_run_s_table_are_read_in_gib():
    counts = (*[2**30] * 6, 2**20, *[0] * 4)
    table = memory_report.Footprint(*counts).table()
    assert update_memory.sums_of("\n".join(table)) == {
        "sampling": 6.0,
        "updating": pytest.approx(3, abs=0.01),
        "saving": 3.0,
    }


def test_random_models_can_be_opened_and_asked(tmp_path):
    """The shapes of the toy world; all have its tokenizer."""
    update_memory.write_model(tmp_path, update_memory.CASES["toy"].spec)
    chat = Chat(load_tokenizer(tmp_path), config.ChatConfig())
    rows = [json.loads(line) for line in update_memory.questions(64, 64).splitlines()]
    assert len({row["question"] for row in rows}) == 64
    assert chat.count_tokens(rows[0]["question"]) == 2
    assert hf_config.read_spec(tmp_path).width == 128


def test_load_tells_bad_flags(tmp_path):
    with pytest.raises(ConfigError) as e:
        load.run(["--size=huge", "--dtype=int8", f"--folder={tmp_path / 'no'}"])
    assert len(e.value.problems) == 3


def test_peak_memory_sees_children():
    grandchild = "x = bytearray(150_000_000); import time; time.sleep(1)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    code, seconds, peak = quick.timed([sys.executable, "-c", program])
    assert code == 0 and seconds > 1 and 150e6 < peak < 1e9
    assert 0 < memory.own_bytes() <= memory.own_peak_bytes() and memory.tree_bytes(os.getpid()) > 0


def test_quick_reads_a_finished_workdir(tmp_path):
    rows = [
        {"tick": 0, "step": 0, "time/pretraining_s": 9.0, "time/eval_s": 1.0},
        {
            "tick": 0,
            "step": 0,
            "time/rollout_s": 2.0,
            "time/eval_s": 0.5,
            "rollout/generated_tokens": 50,
        },
        {"tick": 1, "step": 1, "time/gepa_s": 3.0},
    ]
    for arm in ("grpo", "p2o"):
        (tmp_path / arm).mkdir()
        (tmp_path / arm / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    (tmp_path / "result.json").write_text(
        json.dumps({"base": 0.0, "grpo": 0.25, "p2o": 0.75, "tokens_p2o": 50})
    )
    figures = quick.figures_of(tmp_path)
    assert (
        figures["p2o_minus_grpo"] == 0.5
        and figures["seconds_pretraining"] == 18
        and figures["tokens_p2o"] == 50
    )
    assert figures["seconds_by_phase"]["p2o"] == {
        "eval": 1.5,
        "gepa": 3.0,
        "pretraining": 9.0,
        "rollout": 2.0,
    }
    assert figures["rollout_tokens_per_s"] == {"grpo": 25, "p2o": 25}


def test_quick_wants_a_fresh_workdir(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(ConfigError, match="new or empty"):
        quick.run(["--config=configs/smoke.py", f"--workdir={tmp_path}"])


def test_gepa_keeps_the_sampler_s_rows_busy_and_needs_four_calls_an_iteration():
    """The paper's k and m, with a small dev set and few slots; the benchmark uses the paper's V."""
    figures = gepa_bench.paper_figures(slots=8, max_new_tokens=24, num_questions=60, budget="light")
    assert figures["frac_rows_busy_paper"] >= 0.7
    assert 0 < figures["paper"]["calls_per_iteration"] <= 4 and figures["paper"]["iterations"] > 1


def test_learner_compares_with_the_faster_peer_setting(tmp_path):
    from benchmarks import learner

    assert learner.write_batch(tmp_path / "b.npz", "equal", 100) == 64 * (64 + 128)
    geometric = learner.write_batch(tmp_path / "g.npz", "geometric", 100)
    lengths = [len(e.response_ids) for e in learner.read_batch(str(tmp_path / "g.npz"))]
    assert (
        max(lengths) == 256 and 30 < sum(lengths) / 64 < 62 and geometric == sum(lengths) + 64 * 64
    )

    def line(cpu, rss):
        return [
            sys.executable,
            "-c",
            f'print(\'{{"cpu_s": {cpu}, "update_s": {2 * cpu}, "peak_rss_mb": {rss}}}\')',
        ]

    figures = {}
    todo = {
        "ours:": line(1.0, 100),
        "ours_scored:": line(1.5, 100),
        "trl:64": line(4.0, 300),
        "trl:16": line(3.0, 400),
        "tunix:16": line(6.0, 200),
    }
    learner.compare("x", todo, 600, 1, figures)
    assert (
        figures["x_speedup"] == 3.0
        and figures["x_speedup_scored"] == 2.0
        and figures["x_memory_ratio"] == 0.5
    )
    assert figures["x_trl"] == {
        "tokens_per_cpu_s": 200,
        "tokens_per_s": 100,
        "cpu_s": 3.0,
        "peak_rss_mb": 400,
    }


def test_verifier_bench_judges_easy_symbolic_and_hostile_answers():
    from benchmarks import verifier

    figures = verifier.measure(
        60, 0.1, 0.3, config.RewardConfig(workers=1, timeout_s=0.5), random.Random(0)
    )
    assert (
        figures["frac_judged"] == 1
        and figures["wrong_verdicts"] == 0
        and sum(figures["statuses"].values()) == 60
    )
    assert figures["counts"]["slow"] > 10 and figures["easy_per_s"] > 2000


def test_soak_compares_the_last_quarter_with_the_second():
    from benchmarks import soak

    samples = [
        soak.Sample(step, 1_000_000 + 1000 * step, 8 + step // 80, 30) for step in range(1, 101)
    ]
    rows = [{"step": s, "train/loss": 0.0, "perf/compiles": 40 + (s > 90)} for s in range(100)] + [
        {"step": 50, "gepa/skipped": 0.0}
    ]
    figures = soak.figures_of(samples, rows, 100)
    assert (
        figures["rss_growth"] == round((1_000_000 + 88_000) / (1_000_000 + 38_000) - 1, 4)
        and figures["files_growth"] == 1
    )
    # all steps are of the first two epochs
    assert figures["threads_growth"] == 0 and figures["late_compiles"] == 0
    assert figures["steps"] == 100 and figures["prompt_phases"] == 1


def test_resume_draws_every_kind_of_pair_and_says_what_must_come():
    pairs = resume.draw(random.Random("0"), 200)
    assert {pair.fault for pair in pairs} == {
        "",
        "byte in the newest",
        "byte in all",
        *resume.EXCEPTIONS,
    }
    assert {pair.expected for pair in pairs} == {"continues", "falls back", "refused"}
    assert sum(pair.first == pair.second and not pair.fault for pair in pairs) >= 20
    first = resume.Start((1, 1), 4, "float32", 0, 2)
    assert (
        resume.Pair(first, first._replace(mesh=(2, 2), epochs=60, every=3), "").expected
        == "continues"
    )
    assert (
        resume.Pair(first, first._replace(dtype="bfloat16"), "byte in the newest").expected
        == "refused"
    )
    assert resume.Pair(first, first, "store back").expected == "continues"


def test_resume_sees_every_change_but_a_checkpoint_moved_aside(tmp_path):
    (tmp_path / "checkpoints/3").mkdir(parents=True)
    (tmp_path / "checkpoints/3/host").write_text("a")
    before = resume.contents(tmp_path)
    (tmp_path / "checkpoints").rename(tmp_path / "checkpoints_damaged")
    assert resume.contents(tmp_path) == before
    (tmp_path / "checkpoints_damaged/3/host").write_text("b")
    assert resume.contents(tmp_path) != before


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_scripts_import_what_the_package_has(path):
    """Most scripts are not run by tests, and the type checker sees the package alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("p2o_jax"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(
                    f"{node.module}.{alias.name}"
                ), f"{node.module} has no {alias.name}"


def test_peers_measure_their_own_memory_not_that_of_their_starter():
    """A small process started by one that holds 256 MiB."""
    held = bytearray(256 * 2**20)
    code = "import _common; print(_common.rss_mb())"
    folder = Path(memory.__file__).parent / "peers"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert 5 < float(done.stdout) < 128 and len(held)
