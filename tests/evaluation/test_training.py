"""The real commands on a graded reward of one's own: training with two evaluation sets, then the
best template on the run's policy.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2o_jax.report import run as report_data

ROOT = Path(__file__).parents[2]
REWARD = """
def lower_case(messages, response, answer, meta):
    share = sum(c.islower() for c in response) / max(len(response), 1)
    return share, f"Only {share:.2f} of the characters are lower-case letters."
"""
FEW_SHOT = "\n\n".join(
    f"What is {i} + {i}?\n{i} + {i} = {2 * i}, so \\boxed{{{2 * i}}}." for i in range(20, 28)
)
SETTINGS = {
    "model.path": ROOT / "tests/golden/hf/qwen3_tied",
    "data.max_prompt_tokens": 128,
    "data.prompt_template": "{question}",
    "rollout.questions": 3,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 12,
    "rollout.prompt_buckets": "(128, 480)",
    "rollout.slots": 8,
    "rollout.prompt_cache_tokens": 8192,
    "optim.micro_rows": 4,
    "optim.minibatch_questions": 3,
    "optim.row_tokens": 0,
    "gepa.min_hard": 2,
    "gepa.max_metric_calls": 60,
    "gepa.minibatch": 1,
    "gepa.reflect_prompt_tokens": 400,
    "gepa.reflect_new_tokens": 16,
    "gepa.temperature": 1.0,
    "gepa.filter_replies": "false",
    "gepa.acceptance": "margin",
    "gepa.acceptance_margin": 0,
    "gepa.max_template_tokens": 352,
    "gepa.schedule": "every_epoch",
    "gepa.carry_over": 2,
    "gepa.prompt_style": "compact",
    "train.epochs": 2,
    "reward.workers": 1,
    "loss.entropy_coef": 0.01,
    "train.num_samples_logged": 12,
    "reward.fn": "my_reward:lower_case",
    "reward.success_above": 0.6,
    "model.allow_long_context": "true",
}


def run(folder, module, *argv):
    kept = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    environment = {
        **kept,
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ["PYTHONPATH"]]),
    }
    command = [sys.executable, "-m", module, *map(str, argv)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, compiled):
    folder = tmp_path_factory.mktemp("graded")
    (folder / "my_reward.py").write_text(REWARD)
    for name, numbers in (("train", range(6)), ("dev", range(10, 14)), ("other", range(20, 22))):
        rows = [{"question": f"Say {i}.", "answer": str(i)} for i in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "seeds.jsonl").write_text(json.dumps({"template": FEW_SHOT}) + "\n")
    settings = {
        **SETTINGS,
        "data.path": folder / "train.jsonl",
        "gepa.seed_templates": folder / "seeds.jsonl",
        "train.compile_cache": compiled,
        "data.eval_path": f"{folder / 'dev.jsonl'},second={folder / 'other.jsonl'}",
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    where = ("--config", "configs/smoke.py", "--workdir", folder / "run")
    (folder / "log").write_text(run(folder, "p2o_jax.main", *where, *flags).stderr)
    return folder


def test_own_questions_on_a_hugging_face_model(folder):
    log = (folder / "log").read_text()
    assert "qwen3" in log and "6 questions" in log
    metrics = lines(folder / "run" / "metrics.jsonl")
    assert [row["step"] for row in metrics if "train/loss" in row] == [0, 1, 2, 3]
    (search,) = [row for row in metrics if "gepa/skipped" in row]
    assert search["gepa/skipped"] == 0 and search["gepa/generated_tokens"] > 0
    asked = {row["question"] for row in lines(folder / "run" / "samples.jsonl")}
    assert asked == {f"Say {i}." for i in range(6)}
    assert "accuracy" in json.loads((folder / "run" / "result.json").read_text())


def test_the_search_begins_with_the_templates_given(folder):
    log = (folder / "log").read_text()
    assert f"{folder / 'seeds.jsonl'}: seed templates: 1, of up to " in log
    assert "it began with the empty template and 1 given" in log
    assert lines(folder / "run" / "templates.jsonl")[1]["text"] == FEW_SHOT
    (tree,) = report_data.read(folder / "run", "run", 1 << 20)["templates"]
    assert tree["nodes"][1]["text"] == FEW_SHOT and tree["nodes"][1]["parent"] is None


def test_graded_scores_train_mine_and_evolve_and_every_set_has_its_curve(folder):
    metrics = lines(folder / "run" / "metrics.jsonl")
    steps = [row for row in metrics if "train/loss" in row]
    assert all(
        row["rollout/frac_zero_advantage"] == 0
        and 0 < row["reward/mean"] < 1
        and row["train/grad_norm"] > 0
        for row in steps
    )
    assert all(row["reward/frac_error"] == row["reward/frac_time_out"] == 0 for row in steps)
    (search,) = [row for row in metrics if "gepa/skipped" in row]
    assert (
        search["gepa/hard_questions"] >= 2
        and search["gepa/accepted"] > 0
        and 0 < search["gepa/best_dev_score"] < 1
    )
    curve = [row for row in metrics if "eval/accuracy" in row]
    assert [row["step"] for row in curve] == [0, 2, 4]
    assert all(
        row["eval/accuracy"] == row["eval/dev/accuracy"] and 0 <= row["eval/second/accuracy"] <= 1
        for row in curve
    )
    assert set(lines(folder / "run" / "evaluations.jsonl")[0]["sets"]) == {"dev", "second"}


def test_the_run_is_evaluated_with_its_own_reward_and_best_template(folder):
    argv = [
        "--workdir",
        folder / "run",
        "--benchmarks",
        f"dev={folder / 'dev.jsonl'}",
        "--k=2",
        "--template=best",
        "--allow-reward-fn",
    ]
    run(folder, "p2o_jax.evaluate", *argv, "--out", folder / "out")
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["template"] in {
        row["text"].strip() for row in lines(folder / "run" / "templates.jsonl") if row["text"]
    }
    assert results["config"]["reward"]["fn"] == "my_reward:lower_case"
    for asked, v in results["benchmarks"]["dev"].items():
        rows = lines(folder / "out" / "samples" / f"dev.{asked}.jsonl")
        scores = [row["strict"]["answer_score"] for row in rows]
        assert (
            v["strict"]["mean"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
            and len(scores) == 8
        )
        assert all(row["strict"]["note"].startswith("Only ") for row in rows)
        solved = [row["strict"]["status"] == "correct" for row in rows]
        assert (
            v["strict"]["pass_at"]["2"]
            == sum(map(any, zip(solved[::2], solved[1::2], strict=True))) / 4
        )
