"""What a start refuses because of what is in the run directory: another run's settings, other questions, damaged records."""

import json
from dataclasses import replace
from pathlib import Path

from p2o_jax import config, run_directory
from p2o_jax.config import Config
from p2o_jax.data.sources import load

CFG = config.resolve(Config(data=config.Data(prompt_template="{question}")))


def questions(path: Path, answers: str):
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": a}) + "\n" for i, a in enumerate(answers)))
    return load(path, CFG.data)


def test_a_run_goes_on_with_the_same_questions_only(tmp_path):
    data = questions(tmp_path / "q.jsonl", "123")
    run = tmp_path / "run"
    assert run_directory.changed_questions(run, data, None) == []
    run_directory.write_run_files(run, CFG, data, None)
    assert run_directory.changed_questions(run, questions(tmp_path / "q.jsonl", "123"), None) == []
    for answers in ("12", "124", "1234"):
        (line,) = run_directory.changed_questions(run, questions(tmp_path / "q.jsonl", answers), None)
        assert str(tmp_path / "q.jsonl") in line and "holds a run on other questions" in line


def test_a_run_goes_on_with_the_same_settings_but_those_of_speed_and_length(tmp_path):
    run_directory.write_run_files(tmp_path, CFG)
    speed = replace(CFG, rollout=replace(CFG.rollout, slots=64), train=replace(CFG.train, epochs=99), mesh=replace(CFG.mesh, tensor=2))
    assert run_directory.changed_settings(tmp_path, speed) == []
    (line,) = run_directory.changed_settings(tmp_path, replace(CFG, optim=replace(CFG.optim, lr=0.5)))
    assert "config.optim.lr=0.5" in line
    (tmp_path / "config.json").write_text('{"preset": ')
    (line,) = run_directory.changed_settings(tmp_path, CFG)
    assert "damaged" in line


def test_the_settings_that_name_a_run_are_those_that_may_not_change():
    """Its journals and checkpoints carry their digest: a run on another mesh, or with its checkpoints elsewhere, is the same run."""
    fixed = run_directory.fixed_settings(CFG)
    assert fixed["optim.lr"] == CFG.optim.lr and fixed["preset"] == "recommended" and fixed["gepa.patience"] == 8
    assert not [key for key in fixed if key.startswith(("mesh", "checkpoint", "eval", "api")) or "." not in key and key != "preset"]
    speed = replace(CFG, rollout=replace(CFG.rollout, slots=64), mesh=replace(CFG.mesh, tensor=2), checkpoint=config.Checkpoint(path="x"))
    assert run_directory.fixed_settings(speed) == fixed
    assert run_directory.fixed_settings(replace(CFG, train=replace(CFG.train, seed=1))) != fixed
