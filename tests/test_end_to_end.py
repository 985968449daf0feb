"""The real command in processes of its own: records, repeats, kills, meshes, user data, and what a
new user gets wrong.
"""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from p2o_jax.report import run as report_data
from p2o_jax.tracking.metric_names import METRICS
from tests import toy_runs
from tests.toy_runs import start, succeed

ROOT = toy_runs.ROOT
GOLDEN = ROOT / "tests" / "golden" / "hf"
STEPS, STEPS_PER_EPOCH = toy_runs.STEPS, toy_runs.STEPS_PER_EPOCH


def kill_at(workdir: Path, settings: dict, text: str) -> str:
    """Starts the smoke run and kills it as soon as a line with the text appears; the lines until
    then.
    """
    process = subprocess.Popen(
        toy_runs.arguments("configs/smoke.py", workdir, settings),
        cwd=ROOT,
        env=toy_runs.environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait(timeout=60) == -signal.SIGKILL, "".join(lines)[-3000:]
    return "".join(lines)


def rows(workdir: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (workdir / f"{name}.jsonl").read_text().splitlines()]


def untimed(workdir: Path, steps: int = STEPS + 1) -> list[dict]:
    """The rows of metrics.jsonl before that step without what depends on the machine."""
    kept = [
        {k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))}
        for row in rows(workdir)
    ]
    return [row for row in kept if row["step"] < steps]


def untimed_journal(workdir: Path) -> list[dict]:
    """The calls in the first prompt phase's journal, without the seconds they took."""
    calls = []
    for call in rows(workdir / "gepa", "journal_epoch_0"):
        cost = {
            phase: {k: v for k, v in row.items() if k != "seconds"}
            for phase, row in call["cost"].items()
        }
        calls.append({**call, "cost": cost, "check": ""})
    return calls


def result(workdir: Path) -> dict:
    return {
        k: v
        for k, v in json.loads((workdir / "result.json").read_text()).items()
        if not k.startswith("seconds")
    }


@pytest.fixture(scope="session")
def settings(shared):
    """The settings of all smoke runs."""
    return toy_runs.settings(shared)


@pytest.fixture(scope="session")
def finished(shared):
    """The run directory of an undisturbed run."""
    return toy_runs.finished(shared)


def test_a_run_leaves_its_records(finished):
    names = {path.name for path in finished.iterdir()}
    files = {
        "config.json",
        "versions.json",
        "metrics.jsonl",
        "samples.jsonl",
        "templates.jsonl",
        "evaluations.jsonl",
        "questions.jsonl",
    }
    assert files | {"result.json", "checkpoints", "tensorboard", "gepa"} <= names
    metrics = rows(finished)
    assert {key for row in metrics for key in row} - set(METRICS) == {"tick", "step"}
    steps = [row for row in metrics if "train/loss" in row]
    assert [row["step"] for row in steps] == list(range(STEPS))
    assert any(row["rollout/frac_zero_advantage"] < 1 for row in steps), "something is learnt"
    assert all(row["train/bad_updates"] == 0 and row["train/grad_norm"] > 0 for row in steps)
    assert [row["step"] for row in metrics if "gepa/skipped" in row] == [STEPS_PER_EPOCH]
    templated = [row for row in steps if row["rollout/frac_templated"] > 0]
    assert templated and all(row["step"] >= STEPS_PER_EPOCH for row in templated), (
        "the second epoch uses the first's templates"
    )
    assert any("distill/ratio_p50" in row for row in templated)
    assert (
        max(row["train/logprob_gap_max"] for row in steps if "train/logprob_gap_max" in row) < 1e-4
    )
    samples = rows(finished, "samples")
    assert {row["step"] for row in samples} == set(range(STEPS))
    assert any(
        row["cover_rank"] is not None for row in rows(finished, "templates") if "cover_rank" in row
    )
    assert json.loads((finished / "config.json").read_text())["gepa"]["min_hard"] == 4
    assert {row["epoch"] for row in rows(finished, "questions")} == {0, 1}
    assert {"jax", "python"} <= set(json.loads((finished / "versions.json").read_text()))


def test_a_longer_run_compiles_nothing_more(finished):
    """All programs are compiled by the first step that needs them, so that the memory maps of a
    process, of which a compiled program takes up to 100, do not grow with steps, epochs,
    evaluations or templates.
    """
    compiles = [row["perf/compiles"] for row in rows(finished) if "train/loss" in row]
    assert len(set(compiles[:STEPS_PER_EPOCH])) == 1 and compiles[0] < 150
    assert len(set(compiles[STEPS_PER_EPOCH:])) == 1, "the first templates need a program or two"
    assert len(compiles) == STEPS and compiles[-1] <= compiles[0] + 4


def test_result_json(finished):
    found = json.loads((finished / "result.json").read_text())
    expected = {
        "accuracy_before",
        "accuracy",
        "by_family",
        "generated_tokens",
        "steps",
        "seconds_by_phase",
        "seconds",
        "p_chain_plain",
    }
    assert set(found) == expected | {"ledger", "seconds_ledger", "seconds_pretraining", "template"}
    phases = {
        "policy",
        "score",
        "update",
        "eval",
        "gepa_seed",
        "gepa_parents",
        "gepa_children",
        "gepa_dev",
        "gepa_reflect",
    }
    assert set(found["ledger"]) == set(found["seconds_ledger"]) == phases and all(
        row["flops"] > 0 for row in found["ledger"].values()
    )
    assert found["generated_tokens"] == sum(
        row.get("generated_tokens", 0) for p, row in found["ledger"].items() if p != "eval"
    )
    assert found["steps"] == STEPS and found["seconds"] > 0 and 0 <= found["accuracy"] <= 1
    assert found["generated_tokens"] == rows(finished)[-1]["ledger/generated_tokens"] > 0


def test_a_second_start_does_nothing_new(finished, settings, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    names = ("samples", "templates", "evaluations", "questions")
    told = succeed("configs/smoke.py", workdir, settings)
    assert (
        f"resuming {workdir} at step {STEPS}" in told
        and "step 1/" not in told
        and "gepa iteration" not in told
    )
    assert untimed(workdir) == untimed(finished) and result(workdir) == result(finished)
    assert all(rows(workdir, name) == rows(finished, name) for name in names)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(finished, settings, tmp_path):
    succeed("configs/smoke.py", tmp_path / "again", settings)
    assert untimed(tmp_path / "again") == untimed(finished)
    assert rows(tmp_path / "again", "samples") == rows(finished, "samples")
    assert result(tmp_path / "again") == result(finished)


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_the_same(finished, settings, tmp_path):
    """Killed in a policy step, then twice in the prompt phase. Checkpoints are written while the
    run goes on: the one before is there.

    The phase's journal answers what was generated before the kills, and the ledger has every token
    once.
    """
    workdir = tmp_path / "killed"
    assert "resuming" not in kill_at(workdir, settings, "step 3/6")
    # from step 2, or from the start if that checkpoint was only half written
    kill_at(workdir, settings, "gepa iteration 1")
    assert len(untimed_journal(workdir)) > 0
    assert "resuming" in kill_at(workdir, settings, "gepa iteration 2")
    assert not (workdir / "result.json").exists()
    told = succeed("configs/smoke.py", workdir, settings)
    assert (
        f"resuming {workdir} at step" in told
        and "step 1/6" not in told
        and "gepa iteration" in told
    )
    assert untimed(workdir) == untimed(finished)
    for name in ("samples", "templates", "evaluations", "questions"):
        assert rows(workdir, name) == rows(finished, name)
    assert untimed_journal(workdir) == untimed_journal(finished)
    assert result(workdir) == result(finished)


@pytest.mark.slow
def test_a_killed_prompt_phase_that_took_templates_over_ends_the_same(settings, tmp_path):
    """Two prompt phases; the second, which begins with the first's templates, is killed twice."""
    seeds = tmp_path / "seeds.txt"
    seeds.write_text("treat one digit at a time\n\nswap letters first\n")
    longer = {
        **settings,
        "train.epochs": 3,
        "gepa.seed_templates": seeds,
        "gepa.carry_over": 3,
        "gepa.max_metric_calls": 160,
    }
    output = succeed("configs/smoke.py", tmp_path / "whole", longer)
    assert "it began with the empty template and 2 given" in output
    first, second = (
        [row["text"] for row in rows(tmp_path / "whole", "templates") if row["epoch"] == epoch]
        for epoch in (0, 1)
    )
    assert first[1:3] == second[1:3] == seeds.read_text().strip().split("\n\n")
    assert second[3] in first[3:], "the second phase begins with a template of the first"
    workdir = tmp_path / "killed"
    kill_at(workdir, longer, "step 6/9")
    kill_at(workdir, longer, "gepa iteration 1")
    kill_at(workdir, longer, "gepa iteration 2")
    succeed("configs/smoke.py", workdir, longer)
    assert untimed(workdir, 10) == untimed(tmp_path / "whole", 10)
    for name in ("samples", "templates", "evaluations", "questions"):
        assert rows(workdir, name) == rows(tmp_path / "whole", name)


@pytest.mark.parametrize(
    "mesh",
    [
        {"mesh.fsdp": 8},
        {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
    ],
    ids=["fsdp 8", "2 x 2 x 2"],
)
@pytest.mark.slow
def test_eight_devices_do_as_one(finished, settings, tmp_path, mesh):
    """An epoch on eight fake devices: the same tokens, the same metrics to 1e-4."""
    workdir = tmp_path / "eight"
    told = succeed(
        "configs/smoke.py", workdir, {**settings, **mesh, "mesh.cpu_devices": 8, "train.epochs": 1}
    )
    assert "fsdp 8" in told or "data 2 x fsdp 2 x tensor 2" in told
    want = [row for row in rows(finished, "samples") if row["step"] < STEPS_PER_EPOCH]
    assert rows(workdir, "samples") == want and len(want) == 8 * STEPS_PER_EPOCH
    got = untimed(workdir, STEPS_PER_EPOCH)
    expected = untimed(finished, STEPS_PER_EPOCH)
    assert len(got) == len(expected) == STEPS_PER_EPOCH + 1  # the evaluation before the first step
    for ours, theirs in zip(got, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)


# The shapes are those of tests/evaluation/test_training.py, so that programs are compiled once.
USER_SETTINGS = {
    "model.path": GOLDEN / "qwen3_tied",
    "data.max_prompt_tokens": 128,
    "rollout.questions": 3,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 12,
    "rollout.prompt_buckets": "(128, 900)",
    "rollout.slots": 8,
    "rollout.prompt_cache_tokens": 8192,
    "model.allow_long_context": "true",
    "optim.micro_rows": 4,
    "optim.minibatch_questions": 3,
    "optim.row_tokens": 0,
    "gepa.min_hard": 2,
    "gepa.max_metric_calls": 12,
    "gepa.minibatch": 1,
    "gepa.reflect_prompt_tokens": 800,
    "gepa.reflect_new_tokens": 16,
    "loss.entropy_coef": 0.01,
    "train.epochs": 2,
    "reward.kind": "math",
    "reward.workers": 1,
    "train.num_samples_logged": 12,
}


def write_questions(path: Path, count: int = 6) -> Path:
    path.write_text(
        "".join(
            json.dumps({"question": f"What is {i} + {i}?", "answer": str(2 * i)}) + "\n"
            for i in range(count)
        )
    )
    return path


def test_own_questions_on_a_hugging_face_model(tmp_path, settings):
    data = write_questions(tmp_path / "questions.jsonl")
    few_shot = "\n\n".join(
        f"What is {i} + {i}?\n{i} + {i} = {2 * i}, so \\boxed{{{2 * i}}}." for i in range(20, 40)
    )
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text(json.dumps({"template": few_shot}) + "\n")
    told = succeed(
        "configs/smoke.py",
        tmp_path / "run",
        {
            **USER_SETTINGS,
            "data.path": data,
            "gepa.seed_templates": seeds,
            "gepa.max_template_tokens": 772,
            "gepa.carry_over": 2,
            "train.compile_cache": settings["train.compile_cache"],
        },
    )
    assert "qwen3" in told and "6 questions" in told
    assert f"{seeds}: templates: 1, tokens: up to " in told
    assert "it began with the empty template and 1 given" in told
    assert rows(tmp_path / "run", "templates")[1]["text"] == few_shot
    (tree,) = report_data.read(tmp_path / "run", "run", 1 << 20)["templates"]
    assert tree["nodes"][1]["text"] == few_shot and tree["nodes"][1]["parent"] is None
    metrics = rows(tmp_path / "run")
    steps = [row for row in metrics if "train/loss" in row]
    assert len(steps) == 4 and all(row["train/grad_norm"] > 0 for row in steps)
    (search,) = [row for row in metrics if "gepa/skipped" in row]
    assert (
        search["gepa/skipped"] == 0
        and search["gepa/hard_questions"] == 6
        and search["gepa/generated_tokens"] > 0
    )
    assert {row["question"] for row in rows(tmp_path / "run", "samples")} == {
        f"What is {i} + {i}?" for i in range(6)
    }
    assert "accuracy" in result(tmp_path / "run")


def refused(config: str, workdir: Path, settings: dict) -> list[str]:
    """The `error:` lines of a start that must fail before anything is written."""
    done = start(config, workdir, settings)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr + done.stdout
    assert not workdir.exists()
    return [
        line.removeprefix("error: ")
        for line in done.stderr.splitlines()
        if line.startswith("error: ")
    ]


def test_no_such_config(tmp_path):
    assert refused("configs/nowhere.py", tmp_path / "run", {}) == [
        "--config=configs/nowhere.py: no such file"
    ]


@pytest.mark.parametrize("name", ["math", "qwen3_4b"])
def test_configs_for_models_of_one_s_own_ask_for_them(tmp_path, name):
    lines = refused(f"configs/{name}.py", tmp_path / "run", {"optim.micro_rows": 16})
    assert [line.split(":")[0] for line in lines] == [
        "config.data.path is empty",
        "config.model.path is empty",
    ]


def test_misspelt_keys(tmp_path):
    lines = refused(
        "configs/smoke.py", tmp_path / "run", {"rollout.tempreture": 1, "optim.lr": "fast"}
    )
    assert (
        len(lines) == 2
        and "config.rollout.temperature?" in lines[0]
        and lines[1].startswith("config.optim.lr=fast: expected float")
    )


def test_a_batch_that_does_not_divide(tmp_path, settings):
    lines = refused(
        "configs/smoke.py", tmp_path / "run", {**settings, "optim.minibatch_questions": 3}
    )
    assert lines == ["config.optim.minibatch_questions=3 must divide config.rollout.questions=8"]


def test_an_empty_data_file(tmp_path):
    data = tmp_path / "questions.jsonl"
    data.write_text("")
    (line,) = refused("configs/smoke.py", tmp_path / "run", {**USER_SETTINGS, "data.path": data})
    assert str(data) in line and "no questions" in line


def test_a_line_without_an_answer(tmp_path):
    data = write_questions(tmp_path / "questions.jsonl", 3)
    data.write_text(data.read_text() + '{"question": "What is 1 + 1?"}\n')
    (line,) = refused("configs/smoke.py", tmp_path / "run", {**USER_SETTINGS, "data.path": data})
    assert line.startswith(f"{data}:4: ") and "answer" in line


def test_a_model_directory_without_weights(tmp_path):
    model = shutil.copytree(
        GOLDEN / "qwen3_tied", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")
    )
    (line,) = refused(
        "configs/smoke.py",
        tmp_path / "run",
        {**USER_SETTINGS, "model.path": model, "data.path": write_questions(tmp_path / "q.jsonl")},
    )
    assert str(model) in line and "safetensors" in line


def test_no_such_model_directory(tmp_path):
    settings = {
        **USER_SETTINGS,
        "model.path": tmp_path / "nowhere",
        "data.path": write_questions(tmp_path / "q.jsonl"),
    }
    (line,) = refused("configs/smoke.py", tmp_path / "run", settings)
    assert str(tmp_path / "nowhere") in line and "no such directory" in line


def test_problems_of_settings_data_and_model_are_told_together(tmp_path):
    wrong = {
        **USER_SETTINGS,
        "model.path": tmp_path / "nowhere",
        "data.path": tmp_path / "none.jsonl",
        "rollout.top_p": 2,
    }
    lines = refused("configs/smoke.py", tmp_path / "run", wrong)
    assert len(lines) == 3 and [
        sum(word in line for line in lines) for word in ("top_p", "none.jsonl", "nowhere")
    ] == [1, 1, 1]


def test_a_workdir_of_another_run(finished, settings):
    done = start("configs/smoke.py", finished, {**settings, "optim.lr": 0.5})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "error: config.optim.lr=0.5: " in done.stderr and "holds a run with 0.0002" in done.stderr
    )
