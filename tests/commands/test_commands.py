"""generate, score and export as a user runs them, on the golden checkpoints (random weights,
real files).
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax import config, export, generate, score
from p2o_jax.config import ConfigError, loading
from p2o_jax.data.chat import Chat, load_tokenizer
from p2o_jax.data.prompts import read_prompts
from p2o_jax.models import hf, hf_config, sharding
from p2o_jax.offline.settings import command_config
from p2o_jax.rl.learner import Learner, TrainState
from p2o_jax.runtime import distributed
from p2o_jax.state import RunState
from p2o_jax.tracking import checkpoint, checkpoint_reader
from p2o_jax.tracking.checkpoint import Checkpoints

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
NAMES = ("qwen3_tied", "qwen3_untied", "qwen2_bias", "llama3_rope")
MODEL = GOLDEN / "qwen3_tied"


def jsonl(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def generated(prompts, tmp_path, *flags, model=MODEL):
    out = tmp_path / "out.jsonl"
    generate.run(
        [
            f"--model={model}",
            f"--prompts={prompts}",
            f"--out={out}",
            "--config.rollout.max_new_tokens=8",
            *flags,
        ]
    )
    return [json.loads(line) for line in out.read_text().splitlines()]


def scored(tokens, tmp_path, *flags, model=MODEL):
    out = tmp_path / "scored.npz"
    score.run([f"--model={model}", f"--tokens={tokens}", f"--out={out}", *flags])
    return np.load(out)["token_logprobs"]


def problems(run, *argv):
    with pytest.raises(ConfigError) as e:
        run([str(a) for a in argv])
    return e.value.problems


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """Prompts of two lengths under a template, the first with an answer, and three completions
    of each at temperature 1.
    """
    folder = tmp_path_factory.mktemp("sampled")
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "and a much longer prompt " * 4},
    ]
    prompts = jsonl(
        folder / "p.jsonl", {"prompt": "What is 12 + 34?", "answer": 46}, "", {"question": messages}
    )
    return prompts, generated(
        prompts, folder, "--n=3", "--template=think", "--config.rollout.temperature=1"
    )


def test_jax_is_started_by_the_mesh_of_the_command_line(monkeypatch):
    """Its time limits, too, which the processes wait by before there is a config."""
    seen = []
    monkeypatch.setattr(distributed, "start", lambda mesh, compile_cache: seen.append(mesh) or 8)
    overrides = [("mesh.start_s", "7"), ("mesh.silent_s", "8"), ("rollout.slots", "16")]
    cfg = command_config(config.Config(), {"rollout.slots": "8"}, overrides)
    assert (cfg.rollout.slots, cfg.optim.micro_rows) == (16, 8)
    assert (seen[0].start_s, seen[0].silent_s) == (7, 8) == (cfg.mesh.start_s, cfg.mesh.silent_s)


def test_generate_writes_k_completions_of_each_prompt(sampled):
    rows = sampled[1]
    assert [(r["index"], r["n"]) for r in rows] == [(i, n) for i in range(2) for n in range(3)]
    assert [r.get("verdict", {}).get("status") for r in rows] == ["no_answer"] * 3 + [None] * 3
    assert all(r["tokens"] == len(r["token_ids"]) == 8 or r["stopped"] for r in rows)
    assert len({tuple(r["token_ids"]) for r in rows}) == 6


def test_generate_s_log_probs_are_those_of_score(sampled, tmp_path):
    prompts, rows = sampled
    chat = Chat(load_tokenizer(MODEL), config.ChatConfig())
    read = read_prompts(prompts)
    sequences = [[*chat.render(read[r["index"]].question, "think"), *r["token_ids"]] for r in rows]
    ids, mask = np.zeros((2, 6, 160), np.int32)
    for b, sequence in enumerate(sequences):
        ids[b, : len(sequence)], mask[b, : len(sequence)] = sequence, 1
    np.savez(tmp_path / "t.npz", input_ids=ids, attention_mask=mask)
    logps = scored(tmp_path / "t.npz", tmp_path)
    ends = mask.sum(1)
    sums = [
        logps[b, end - r["tokens"] : end].sum()
        for b, (end, r) in enumerate(zip(ends, rows, strict=True))
    ]
    np.testing.assert_allclose(sums, [r["logp"] for r in rows], atol=1e-3)


def test_generate_gives_the_same_whatever_else_is_in_the_file_and_whatever_shapes_the_user_sets(
    sampled, tmp_path, capsys
):
    prompts = jsonl(tmp_path / "p.jsonl", {"question": "What is 12 + 34?", "answer": "46"})
    shapes = (
        "--config.rollout.prompt_buckets=(48,)",
        "--config.rollout.slots=8",
        "--config.reward.kind=exact",
    )
    (row,) = generated(
        prompts, tmp_path, "--template=think", "--config.rollout.temperature=1", *shapes
    )
    expected = sampled[1][0]
    assert {k: v for k, v in row.items() if k != "logp"} == {
        k: v for k, v in expected.items() if k != "logp"
    }
    assert abs(row["logp"] - expected["logp"]) < 1e-3
    assert "tokens/s" in capsys.readouterr().err


@pytest.mark.slow
def test_generate_at_temperature_0_says_the_same_every_time(sampled, tmp_path):
    rows = generated(sampled[0], tmp_path, "--n=2", "--temperature=0")
    assert [r["token_ids"] for r in rows[::2]] == [r["token_ids"] for r in rows[1::2]]
    assert [r["token_ids"] for r in rows[::2]] != [r["token_ids"] for r in sampled[1][::3]]


def test_generate_asks_plainly_and_under_each_template_of_a_file(sampled, tmp_path, capsys):
    """Responses under a template are those of --template."""
    templates = tmp_path / "templates.txt"
    templates.write_text("think\n\nanswer\nshortly\n")
    rows = generated(
        *(sampled[0], tmp_path, "--n=3", f"--templates={templates}"),
        *("--config.rollout.temperature=1", "--config.rollout.prompt_buckets=(176,)"),
    )
    assert [row["template"] for row in rows] == [""] * 6 + ["think"] * 6 + ["answer\nshortly"] * 6
    under = [{k: v for k, v in row.items() if k not in ("template", "logp")} for row in rows[6:12]]
    assert under == [{k: v for k, v in row.items() if k != "logp"} for row in sampled[1]]
    shown = [line for line in capsys.readouterr().err.splitlines() if " right (" in line]
    assert [line.strip() for line in shown] == [
        f"{name}: 0 of 3 right (0.0%)"
        for name in ("plain", "template 1 (think)", "template 2 (answer)")
    ]


def test_generate_tells_bad_input(tmp_path):
    prompts = jsonl(tmp_path / "p.jsonl", {"prompt": "hi"})
    bad = jsonl(
        tmp_path / "bad.jsonl",
        "{",
        {"text": "hi"},
        {"prompt": " "},
        {"prompt": [{"role": "user"}]},
        {"prompt": "a", "answer": []},
    )
    messages = problems(generate.run, "--model", MODEL, "--prompts", bad)
    assert [line.split(": ")[0].rpartition(":")[2] for line in messages] == [
        "1",
        "2",
        "3",
        "4",
        "5",
    ]
    assert (
        "no prompts"
        in problems(generate.run, "--model", MODEL, "--prompts", jsonl(tmp_path / "none.jsonl"))[0]
    )
    assert (
        "No such file"
        in problems(generate.run, "--model", MODEL, "--prompts", tmp_path / "missing.jsonl")[0]
    )
    assert (
        "--temperature=-1"
        in problems(generate.run, "--model", MODEL, "--prompts", prompts, "--temperature=-1")[0]
    )
    assert "--n=0" in problems(generate.run, "--model", MODEL, "--prompts", prompts, "--n", "0")[0]
    both = problems(
        generate.run, "--model", MODEL, "--prompts", prompts, f"--n={10**20}", "--temperature=1e-38"
    )
    assert both[0] == "--n=100000000000000000000 must be at most 2,147,483,647"
    assert both[1].startswith("--temperature=1e-38 must be 0, or in [0.01, 100]") and len(both) == 2
    assert (
        "no such directory"
        in problems(generate.run, "--model", tmp_path / "missing", "--prompts", prompts)[0]
    )
    assert (
        "--out="
        in problems(
            generate.run, "--model", MODEL, "--prompts", prompts, "--out", tmp_path / "no" / "out"
        )[0]
    )
    assert "--prompts: required" in problems(generate.run, "--model", MODEL)[0]
    assert problems(
        *(generate.run, "--model", MODEL, "--prompts", prompts),
        *("--template=a", f"--templates={tmp_path / 'none.txt'}"),
    ) == ("--template and --templates: give one of them",)
    assert (
        "none.txt: no such file"
        in problems(
            *(generate.run, "--model", MODEL, "--prompts", prompts),
            f"--templates={tmp_path / 'none.txt'}",
        )[0]
    )
    assert (
        "did you mean"
        in problems(
            generate.run, "--model", MODEL, "--prompts", prompts, "--config.rollout.temprature=1"
        )[0]
    )
    out = jsonl(tmp_path / "mine.jsonl", {"mine": 1})
    assert (
        "never overwritten"
        in problems(generate.run, "--model", MODEL, "--prompts", prompts, "--out", out)[0]
    )
    assert (
        "is a directory"
        in problems(generate.run, "--model", MODEL, "--prompts", prompts, "--out", tmp_path)[0]
    )
    assert out.read_text() == '{"mine": 1}\n'
    short = problems(
        generate.run, "--model", MODEL, "--prompts", prompts, "--config.rollout.prompt_buckets=(4,)"
    )
    assert "p.jsonl:1: a prompt of" in short[0]


@pytest.mark.parametrize("name", NAMES)
def test_score_equals_golden(name, tmp_path):
    golden = np.load(GOLDEN / name / "golden.npz")
    ours = scored(GOLDEN / name / "golden.npz", tmp_path, model=GOLDEN / name)
    assert ours.dtype == np.float32 and ours.shape == golden["token_logprobs"].shape
    assert np.abs(ours - golden["token_logprobs"]).max() <= 1e-4


def test_score_is_the_same_padded_on_the_right_in_small_batches_and_chunks(tmp_path):
    golden = np.load(MODEL / "golden.npz")
    ids, mask = np.tile(golden["input_ids"], (5, 1)), np.tile(golden["attention_mask"], (5, 1)) > 0
    expected = np.tile(golden["token_logprobs"], (5, 1))
    right_mask = np.sort(~mask, axis=1) == 0
    right_ids = np.full_like(ids, -100)  # what stands under padding does not matter
    right_ids[right_mask] = ids[mask]
    np.savez(tmp_path / "t.npz", input_ids=right_ids, attention_mask=right_mask)
    ours = scored(
        tmp_path / "t.npz",
        tmp_path,
        "--config.optim.micro_rows=8",
        "--config.model.logit_chunk=100",
    )
    assert np.abs(ours[right_mask] - expected[mask]).max() <= 1e-4
    assert (ours[~right_mask] == 0).all() and (ours[:, 0] == 0).all()


def test_score_tells_bad_input(tmp_path):
    def refusals(**arrays):
        np.savez(tmp_path / "t.npz", **arrays)
        return problems(
            score.run,
            "--model",
            MODEL,
            "--tokens",
            tmp_path / "t.npz",
            "--out",
            tmp_path / "out.npz",
        )

    ids, mask = np.ones((2, 4), np.int32), np.ones((2, 4), np.int32)
    assert "no array attention_mask" in refusals(input_ids=ids)[0]
    assert "attention_mask [2, 3]" in refusals(input_ids=ids, attention_mask=mask[:, 1:])[0]
    assert "input_ids [2, 4] float64" in refusals(input_ids=ids * 0.5, attention_mask=mask)[0]
    assert "row 1" in refusals(input_ids=ids, attention_mask=[[0, 1, 1, 0], [1, 0, 1, 0]])[0]
    assert "vocabulary is 0..383" in refusals(input_ids=ids * 384, attention_mask=mask)[0]
    (tmp_path / "t.npz").write_text("no archive")
    flags = ("--model", MODEL, "--tokens", tmp_path / "t.npz", "--out", tmp_path / "out.npz")
    assert "cannot be read" in problems(score.run, *flags)[0]
    assert (
        "No such file"
        in problems(
            score.run,
            "--model",
            MODEL,
            "--tokens",
            tmp_path / "missing",
            "--out",
            tmp_path / "out.npz",
        )[0]
    )
    good = ("--model", MODEL, "--tokens", MODEL / "golden.npz")
    assert (
        "no such directory" in problems(score.run, *good, "--out", tmp_path / "no" / "out.npz")[0]
    )
    (tmp_path / "out.npz").write_text("mine")
    assert "never overwritten" in problems(score.run, *good, "--out", tmp_path / "out.npz")[0]
    assert (tmp_path / "out.npz").read_text() == "mine"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run on the golden model with checkpoints after 0, 2 and 2 policy steps: after 2 all
    weights are 1.5 times what they were.
    """
    workdir = tmp_path_factory.mktemp("run")
    cfg = config.resolve(
        config.Config(
            model=config.ModelConfig(path=str(MODEL)), checkpoint=config.CheckpointConfig(keep=3)
        )
    )
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(cfg)))
    spec, mesh = hf_config.read_spec(MODEL), sharding.make_mesh((1, 8, 1))
    learner = Learner(spec, mesh, cfg, 10, jnp.float32, 0)
    state = learner.init(hf.load(MODEL, spec, learner.param_shardings))
    checkpoints = Checkpoints(workdir, cfg.checkpoint)
    checkpoints.save(RunState(state))
    params = jax.tree.map(lambda w: w * 1.5, state.params)
    for tick in (2, 3):
        checkpoints.save(
            RunState(TrainState(params, state.opt_state, state.bad_updates), tick=tick, step=2)
        )
    checkpoints.close()
    return workdir


def test_export_writes_the_newest_policy_or_that_of_a_step(run_dir, tmp_path):
    assert checkpoint_reader.policies(checkpoint.directory(run_dir, config.CheckpointConfig())) == {
        0: 0,
        2: 3,
    }
    export.run([f"--workdir={run_dir}", f"--out={tmp_path / 'new'}", "--dtype=float32"])
    export.run([f"--workdir={run_dir}", f"--out={tmp_path / 'old'}", "--step=0", "--dtype=float32"])
    export.run([f"--workdir={run_dir}", f"--out={tmp_path / 'half'}"])
    spec = hf_config.read_spec(tmp_path / "new")
    original = hf.load(MODEL, spec)
    for folder, factor in (("new", 1.5), ("old", 1.0)):
        jax.tree.map(
            lambda a, b, f=factor: np.testing.assert_array_equal(a, b * f),
            hf.load(tmp_path / folder, spec),
            original,
        )
    half = hf.load(tmp_path / "half", spec, dtype="bfloat16")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, (b * 1.5).astype(jnp.bfloat16)),
        half,
        original,
    )
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    golden = np.load(MODEL / "golden.npz")["token_logprobs"]
    assert (
        np.abs(scored(MODEL / "golden.npz", tmp_path, model=tmp_path / "old") - golden).max()
        <= 1e-4
    )
    assert (
        load_tokenizer(tmp_path / "new").hf.chat_template == load_tokenizer(MODEL).hf.chat_template
    )


def test_export_tells_bad_input(run_dir, tmp_path):
    flags = ("--workdir", run_dir, "--out", tmp_path / "out")
    assert problems(export.run, *flags, "--step", "1")[0].endswith("there are 0, 2")
    assert "--dtype=int8" in problems(export.run, *flags, "--dtype", "int8")[0]
    assert "not empty" in problems(export.run, "--workdir", run_dir, "--out", run_dir)[0]
    assert (
        "no run in it" in problems(export.run, "--workdir", tmp_path, "--out", tmp_path / "out")[0]
    )
    assert (
        f"it holds the runs {run_dir}"
        in problems(export.run, "--workdir", run_dir.parent, "--out", tmp_path / "out")[0]
    )
    other = problems(export.run, *flags, f"--config.model.path={GOLDEN / 'qwen3_untied'}")
    assert "in the checkpoint and" in other[0] and "compare config.model.path" in other[0]
    (tmp_path / "config.json").write_text((run_dir / "config.json").read_text())
    assert (
        "no checkpoints"
        in problems(export.run, "--workdir", tmp_path, "--out", tmp_path / "out")[0]
    )
    assert not (tmp_path / "out").exists()


def test_export_refuses_a_damaged_checkpoint(run_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    largest = max((run / "checkpoints/3/learner").rglob("*"), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    for i in range(80):
        data[len(data) * i // 80] ^= 1 << i % 8
    largest.write_bytes(data)
    (line,) = problems(export.run, "--workdir", run, "--out", tmp_path / "out")
    assert f"{run}/checkpoints/3 is damaged" in line and largest.name in line
    assert not (tmp_path / "out").exists()
    export.run([f"--workdir={run}", f"--out={tmp_path / 'out'}", "--step=0"])


def test_read_config_is_the_run_s_own(run_dir):
    cfg = loading.read_config(run_dir, [("optim.lr", "0.5"), ("gepa.patience", "3")])
    expected = config.resolve(
        config.Config(
            model=config.ModelConfig(path=str(MODEL)), checkpoint=config.CheckpointConfig(keep=3)
        )
    )
    gepa = dataclasses.replace(expected.gepa, patience=3)
    assert cfg == dataclasses.replace(
        expected, optim=dataclasses.replace(expected.optim, lr=0.5), gepa=gepa
    )


def test_commands_end_with_exit_code_2_and_no_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "p2o_jax.export",
        "--workdir",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_command_modules_do_not_import_jax():
    program = (
        "import sys; from p2o_jax import generate, score, export; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_help_that_nobody_reads_on_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command, root = [sys.executable, "-m", "p2o_jax.main", "--help"], Path(__file__).parents[2]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, cwd=root)
    os.close(writer)
    assert done.returncode == 0 and done.stderr == b""
