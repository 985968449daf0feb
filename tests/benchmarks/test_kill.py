"""Runs that are killed, asked to leave, or moved to other devices, and what they are in the end.
`benchmarks.kill` has many more kills.
"""

import json
import random
import shutil
import signal

import pytest

from benchmarks import kill
from benchmarks.kill import Run
from p2o_jax.models import hf_config
from tests import toy_runs

DYNAMIC = {"rollout.dynamic_sampling": "true", "train.epochs": 1, "gepa.enabled": "false"}


@pytest.fixture(scope="module")
def settings(shared):
    """The settings of all runs, whose base model and compiled programs are shared."""
    return toy_runs.settings(shared)


@pytest.fixture(scope="module")
def whole(shared):
    """The run directory of a run that nobody disturbed."""
    return toy_runs.finished(shared)


def log_of(workdir) -> str:
    return workdir.with_suffix(".log").read_text()


def samples(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "samples.jsonl").read_text().splitlines()]


KILLS = (("checkpoint", 2), ("gepa", 3))


@pytest.mark.parametrize(
    "aims",
    [KILLS, pytest.param((("update", 2), *KILLS, ("end", 1)), marks=pytest.mark.slow)],
    ids=["2 kills", "4 kills"],
)
def test_a_run_killed_again_and_again_ends_bit_for_bit_the_same(whole, settings, tmp_path, aims):
    """At the end of a checkpoint's save and in GEPA; or in an update and at the end, too."""
    rng, workdir = random.Random(0), tmp_path / "killed"
    hits = [
        Run(workdir, settings, phase, number, rng.uniform(0, 0.02)).hit() for phase, number in aims
    ]
    assert "ended" not in hits
    assert Run(workdir, settings).wait() == 0
    assert kill.differences(whole, workdir) == []
    starts = json.loads((workdir / "seconds.json").read_text())
    assert len(starts) >= len(aims) and json.loads((workdir / "result.json").read_text())[
        "seconds"
    ] == pytest.approx(sum(starts), abs=0.1)


def test_differences_are_found(whole, tmp_path):
    """The comparison itself can fail: one digit of a metric, one row too many, one journal less."""
    for name, damage in (
        ("metrics.jsonl", lambda text: text.replace('"step": 3', '"step": 4', 1)),
        ("samples.jsonl", lambda text: text + text.splitlines()[0] + "\n"),
    ):
        other = shutil.copytree(whole, tmp_path / name)
        (other / name).write_text(damage((other / name).read_text()))
        assert kill.differences(whole, other) == [name.removesuffix(".jsonl")]
    other = shutil.copytree(whole, tmp_path / "journal")
    next((other / "gepa").glob("journal*")).rename(other / "gepa" / "journal_of_another_name.jsonl")
    with pytest.raises(FileNotFoundError):
        kill.differences(whole, other)


@pytest.mark.parametrize(
    ("phase", "number", "step"),
    [
        pytest.param("rollout", 2, 1, marks=pytest.mark.slow),
        pytest.param("update", 2, None, marks=pytest.mark.slow),
        pytest.param("gepa", 3, 3, marks=pytest.mark.slow),
    ],
)
def test_sigterm_saves_and_the_next_start_continues(whole, settings, tmp_path, phase, number, step):
    workdir = tmp_path / "stopped"
    code, seconds = Run(workdir, settings, phase, number, 0.02, signal.SIGTERM).stop()
    assert code == 0, log_of(workdir)[-3000:]
    assert (
        seconds < 25.0 and "SIGTERM" in log_of(workdir) and not (workdir / "result.json").exists()
    )
    assert Run(workdir, settings).wait() == 0
    if step is not None:  # the step itself is done again, nothing before it
        assert f"resuming {workdir} at step {step}" in log_of(workdir)
    assert kill.differences(whole, workdir) in ([], ["checkpoints"]), (
        "it may have one more checkpoint"
    )


@pytest.mark.slow
def test_dynamic_sampling_goes_on_as_it_would_have(settings, tmp_path):
    settings = {**settings, **DYNAMIC}
    assert Run(tmp_path / "whole", settings).wait() == 0
    assert Run(tmp_path / "killed", settings, "update", 3).hit().startswith("update")
    assert Run(tmp_path / "killed", settings).wait() == 0
    assert kill.differences(tmp_path / "whole", tmp_path / "killed") == []
    rows = [
        json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    ]
    assert max(row.get("rollout/sampling_rounds", 0) for row in rows) > 1, (
        "further questions were asked"
    )


@pytest.mark.slow
def test_a_run_moves_from_two_devices_to_eight_to_one(whole, settings, tmp_path):
    """The same questions, templates and texts; numbers to 1e-4."""
    workdir = tmp_path / "moved"
    for devices in (2, 8):
        hit = Run(workdir, {**settings, "mesh.cpu_devices": devices}, "update", 3).hit()
        assert "update" in hit
    assert Run(workdir, settings).wait() == 0
    assert samples(workdir) == samples(whole)
    ours, theirs = (
        [json.loads(line) for line in (w / "metrics.jsonl").read_text().splitlines()]
        for w in (workdir, whole)
    )
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        untimed = [
            {k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in (a, b)
        ]
        assert untimed[0] == pytest.approx(untimed[1], rel=1e-4, abs=1e-4)


OTHER_MODELS = {
    "data.prompt_template": "{question}",
    "data.max_prompt_tokens": 120,
    "rollout.questions": 4,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 16,
    "rollout.prompt_buckets": "(160, 512)",
    "rollout.slots": 8,
    "rollout.min_slots": 0,
    "rollout.prompt_cache_tokens": 8192,
    "optim.micro_rows": 8,
    "optim.row_tokens": 192,
    "optim.minibatch_questions": 4,
    "loss.entropy_coef": 0.01,
    "reward.fn": "p2o_jax.rewards.examples:pattern",
    "reward.workers": 1,
    "gepa.min_hard": 2,
    "gepa.dev_size": 4,
    "gepa.max_metric_calls": 40,
    "gepa.temperature": 1.0,
    "gepa.acceptance": "margin",
    "gepa.acceptance_margin": 0,
    "gepa.filter_replies": "false",
    "gepa.reflect_prompt_tokens": 440,
    "gepa.reflect_new_tokens": 16,
    "gepa.prompt_style": "compact",
    "train.epochs": 2,
    "eval.every_steps": 0,
    "checkpoint.every_steps": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_moe", "qwen3_5"])
def test_models_with_windows_experts_and_delta_nets_killed(name, shared, tmp_path):
    """Two epochs of two steps with a prompt phase between them, killed in an update and in it."""
    model = tmp_path / "model"
    shutil.copytree(kill.ROOT / "tests/golden/hf" / name, model)
    for file in hf_config.tokenizer_files(kill.ROOT / "tests/golden/hf/qwen3_tied"):
        shutil.copy(file, model)
    rows = [{"question": f"Which letters, number {i}?", "answer": "[aeiou]"} for i in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        **OTHER_MODELS,
        "model.path": model,
        "data.path": tmp_path / "data.jsonl",
        "train.compile_cache": toy_runs.settings(shared)["train.compile_cache"],
        "train.router_replay": str(name == "qwen3_moe").lower(),
    }
    assert Run(tmp_path / "whole", settings).wait() == 0, log_of(tmp_path / "whole")[-3000:]
    metrics = [
        json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    ]
    assert sum("train/loss" in row for row in metrics) == 4
    assert any(row.get("gepa/generated_tokens", 0) > 0 for row in metrics)
    if name == "qwen3_moe":  # in float32, sampler and learner choose alike
        assert any(row.get("train/router_frac_differ", 1) < 0.01 for row in metrics)
    for phase, number in (("update", 2), ("gepa", 2)):
        assert "ended" not in Run(tmp_path / "killed", settings, phase, number, 0.01).hit()
    assert Run(tmp_path / "killed", settings).wait() == 0
    assert kill.differences(tmp_path / "whole", tmp_path / "killed") == []
