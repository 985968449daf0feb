"""The real command in processes of its own: records, repeats, kills, meshes, and what a new user
gets wrong.
"""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from p2o_jax.toy_world import phrases
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
    assert len(compiles) == STEPS and compiles[-1] < 150
    assert len(set(compiles[:STEPS_PER_EPOCH])) == 1
    assert len(set(compiles[STEPS_PER_EPOCH:])) == 1, "the first templates need more programs"


def test_result_json(finished):
    result_json = json.loads((finished / "result.json").read_text())
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
    assert set(result_json) == expected | {
        "ledger",
        "seconds_ledger",
        "seconds_pretraining",
        "template",
    }
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
    assert set(result_json["ledger"]) == set(result_json["seconds_ledger"]) == phases and all(
        row["flops"] > 0 for row in result_json["ledger"].values()
    )
    assert result_json["generated_tokens"] == sum(
        row.get("generated_tokens", 0) for p, row in result_json["ledger"].items() if p != "eval"
    )
    assert (
        result_json["steps"] == STEPS
        and result_json["seconds"] > 0
        and 0 <= result_json["accuracy"] <= 1
    )
    assert result_json["generated_tokens"] == rows(finished)[-1]["ledger/generated_tokens"] > 0


def test_a_second_start_does_nothing_new(finished, settings, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    names = ("samples", "templates", "evaluations", "questions")
    output = succeed("configs/smoke.py", workdir, settings)
    assert (
        f"{workdir} is finished, at step {STEPS}" in output
        and "step 1/" not in output
        and "gepa iteration" not in output
    )
    assert untimed(workdir) == untimed(finished) and result(workdir) == result(finished)
    assert all(rows(workdir, name) == rows(finished, name) for name in names)


@pytest.mark.slow
def test_hints_in_place_of_templates_that_evolve(settings, tmp_path):
    """The second epoch asks the first one's hard questions under their hints; nothing reflects."""
    hints = {"gepa.reflector": "hint", "data.hint_field": "hint", "loss.self_distill_coef": 0.5}
    output = succeed("configs/smoke.py", tmp_path / "run", settings | hints)
    assert "gepa iteration" not in output and " questions are asked under hints" in output
    steps = [row for row in rows(tmp_path / "run", "metrics") if "rollout/frac_templated" in row]
    shares = [row["rollout/frac_templated"] for row in steps]
    assert shares[:STEPS_PER_EPOCH] == [0] * STEPS_PER_EPOCH < shares[STEPS_PER_EPOCH:]
    asked = {row["template"] for row in rows(tmp_path / "run", "samples")} - {""}
    strong = {first for first, *_ in phrases.STRATEGIES.values()}
    assert asked and asked <= strong


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(finished, settings, tmp_path):
    succeed("configs/smoke.py", tmp_path / "again", settings)
    assert untimed(tmp_path / "again") == untimed(finished)
    assert rows(tmp_path / "again", "samples") == rows(finished, "samples")
    assert result(tmp_path / "again") == result(finished)


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_the_same(finished, settings, tmp_path):
    """Killed in a policy step, then twice in the prompt phase. Checkpoints are written while the
    run continues: the one before is there.

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
    output = succeed("configs/smoke.py", workdir, settings)
    assert (
        f"resuming {workdir} at step" in output
        and "step 1/6" not in output
        and "gepa iteration" in output
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
        "gepa.max_metric_calls": 240,
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
    output = succeed(
        "configs/smoke.py", workdir, {**settings, **mesh, "mesh.cpu_devices": 8, "train.epochs": 1}
    )
    assert "fsdp 8" in output or "data 2 x fsdp 2 x tensor 2" in output
    want = [row for row in rows(finished, "samples") if row["step"] < STEPS_PER_EPOCH]
    assert rows(workdir, "samples") == want and len(want) == 8 * STEPS_PER_EPOCH
    got = untimed(workdir, STEPS_PER_EPOCH)
    expected = untimed(finished, STEPS_PER_EPOCH)
    assert len(got) == len(expected) == STEPS_PER_EPOCH + 1  # the evaluation before the first step
    for ours, theirs in zip(got, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)


USER_SETTINGS = {
    "model.path": GOLDEN / "qwen3_tied",
    "data.max_prompt_tokens": 128,
    "rollout.max_new_tokens": 12,
    "rollout.prompt_buckets": "(128, 900)",
    "optim.row_tokens": 0,
    "reward.kind": "math",
}


def write_questions(path: Path, count: int = 6, more: str = "") -> Path:
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + more)
    return path


@pytest.fixture(scope="module")
def refused(tmp_path_factory, settings):
    """The problems of starts that must fail before anything is written, and their folder."""
    folder = tmp_path_factory.mktemp("refused")
    data = write_questions(folder / "questions.jsonl")
    write_questions(folder / "empty.jsonl", 0)
    write_questions(folder / "unanswered.jsonl", 3, '{"question": "What is 1 + 1?"}\n')
    no_weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(GOLDEN / "qwen3_tied", folder / "model", ignore=no_weights)
    user = {**USER_SETTINGS, "data.path": data}
    wrong = {"data.path": folder / "none", "model.path": folder / "nowhere", "rollout.top_p": 2}
    given = {
        "no such config": ("nowhere", {}),
        "math": ("math", {"optim.micro_rows": 16}),
        "qwen3_4b": ("qwen3_4b", {"optim.micro_rows": 16}),
        "misspelt": ("smoke", {"rollout.tempreture": 1, "optim.lr": "fast"}),
        "empty data": ("smoke", {**user, "data.path": folder / "empty.jsonl"}),
        "no answer": ("smoke", {**user, "data.path": folder / "unanswered.jsonl"}),
        "no weights": ("smoke", {**user, "model.path": folder / "model"}),
        "no model": ("smoke", {**user, "model.path": folder / "nowhere"}),
        "several": ("smoke", {**user, **wrong}),
    }
    workdir = folder / "run"
    problems = toy_runs.starts(
        *(
            ("p2o_jax.main", toy_runs.flags(f"configs/{config}.py", workdir, changed))
            for config, changed in given.values()
        )
    )
    assert not workdir.exists()
    return folder, dict(zip(given, problems, strict=True))


def test_no_such_config(refused):
    expected = ["--config=configs/nowhere.py: no such file"]
    assert refused[1]["no such config"] == expected


@pytest.mark.parametrize("name", ["math", "qwen3_4b"])
def test_configs_for_models_of_one_s_own_ask_for_them(refused, name):
    assert [line.split(":")[0] for line in refused[1][name]] == [
        "config.data.path is empty",
        "config.model.path is empty",
    ]


def test_misspelt_keys(refused):
    lines = refused[1]["misspelt"]
    assert (
        len(lines) == 2
        and "config.rollout.temperature?" in lines[0]
        and lines[1].startswith("config.optim.lr=fast: expected float")
    )


def test_an_empty_data_file(refused):
    folder, problems = refused
    (line,) = problems["empty data"]
    assert str(folder / "empty.jsonl") in line and "no questions" in line


def test_a_line_without_an_answer(refused):
    folder, problems = refused
    (line,) = problems["no answer"]
    assert line.startswith(f"{folder / 'unanswered.jsonl'}:4: ") and "answer" in line


def test_a_model_directory_without_weights(refused):
    folder, problems = refused
    (line,) = problems["no weights"]
    assert str(folder / "model") in line and "safetensors" in line


def test_no_such_model_directory(refused):
    folder, problems = refused
    (line,) = problems["no model"]
    assert str(folder / "nowhere") in line and "no such directory" in line


def test_problems_of_settings_data_and_model_are_reported_together(refused):
    lines = refused[1]["several"]
    words = ("top_p", "none", "nowhere")
    assert [sum(word in line for line in lines) for word in words] == [1, 1, 1] and len(lines) == 3


def printed_errors(workdir: Path, settings: dict) -> list[str]:
    """The `error: ` lines of a start that must fail."""
    done = start("configs/smoke.py", workdir, settings)
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_a_batch_that_does_not_divide(tmp_path, settings):
    expected = "config.optim.minibatch_questions=3 must divide config.rollout.questions=8"
    wrong = {**settings, "optim.minibatch_questions": 3}
    assert printed_errors(tmp_path / "run", wrong) == [f"error: {expected}"]
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_run(finished, settings):
    (line,) = printed_errors(finished, {**settings, "optim.lr": 0.5})
    assert "error: config.optim.lr=0.5: " in line and "holds a run with 0.0002" in line
