"""What a start refuses: a workdir of another run, other questions, a damaged record; and where held-out questions come from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from p2o_jax import build, config
from p2o_jax.checkpoint import Checkpoints
from p2o_jax.config import Config, ConfigError
from p2o_jax.data.sources import load
from p2o_jax.progress import Reporter
from p2o_jax.recorder import RunLog
from p2o_jax.records import RunState

CFG = config.resolve(Config(data=config.Data(suffix="")))


def questions(path: Path, answers: str):
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": a}) + "\n" for i, a in enumerate(answers)))
    return load(path, CFG.data)


def test_a_run_goes_on_with_the_same_questions_only(tmp_path):
    data = questions(tmp_path / "q.jsonl", "123")
    run = tmp_path / "run"
    assert build.changed_questions(run, data, None) == []
    build.write_run_files(run, CFG, data, None)
    assert build.changed_questions(run, questions(tmp_path / "q.jsonl", "123"), None) == []
    for answers in ("12", "124", "1234"):
        (line,) = build.changed_questions(run, questions(tmp_path / "q.jsonl", answers), None)
        assert str(tmp_path / "q.jsonl") in line and "holds a run on other questions" in line


def test_a_run_goes_on_with_the_same_settings_but_those_of_speed_and_length(tmp_path):
    build.write_run_files(tmp_path, CFG)
    speed = replace(CFG, rollout=replace(CFG.rollout, slots=64), train=replace(CFG.train, epochs=99), mesh=replace(CFG.mesh, tensor=2))
    assert build.changed_settings(tmp_path, speed) == []
    (line,) = build.changed_settings(tmp_path, replace(CFG, optim=replace(CFG.optim, lr=0.5)))
    assert "config.optim.lr=0.5" in line
    (tmp_path / "config.json").write_text('{"preset": ')
    (line,) = build.changed_settings(tmp_path, CFG)
    assert "damaged" in line


def test_held_out_questions_of_the_world_or_of_a_file(tmp_path):
    world = build.load_questions(CFG, "eval_path")
    assert world is not None and world.path == build.WORLD
    questions(tmp_path / "held.jsonl", "12")
    own = build.load_questions(replace(CFG, data=replace(CFG.data, eval_path=str(tmp_path / "held.jsonl"))), "eval_path")
    assert own is not None and len(own.questions) == 2
    with pytest.raises(ConfigError, match="no such file"):
        build.load_questions(replace(CFG, data=replace(CFG.data, eval_path=str(tmp_path / "none.jsonl"))), "eval_path")


@pytest.mark.parametrize("given", ["model", "data"])
def test_the_world_and_own_things_do_not_mix(tmp_path, given):
    questions(tmp_path / "q.jsonl", "12")
    golden = Path(__file__).parent / "golden/hf/qwen3_tied"
    cfg = replace(CFG, model=replace(CFG.model, path=str(golden))) if given == "model" else CFG
    cfg = replace(cfg, data=replace(cfg.data, path=str(tmp_path / "q.jsonl"))) if given == "data" else cfg
    with pytest.raises(ConfigError, match="only go together"):
        build.open_run(replace(cfg, mesh=replace(cfg.mesh, fsdp=8)), tmp_path / "run", Reporter(enabled=False))


def test_checkpoints_around_prompt_phases_only(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path, config.Checkpoint(every_steps=0))
    saved = []
    monkeypatch.setattr(kept, "save", lambda state: saved.append(state.tick))
    states = [RunState({}, tick=0, step=0), RunState({}, tick=1, step=1, phase="prompts"), RunState({}, tick=2, step=1)]
    kept.save_if_due(RunState({}), states[0])
    kept.save_if_due(*states[:2])
    kept.save_if_due(*states[1:])
    kept.close()
    assert saved == [1, 2]


def test_rows_after_the_checkpoint_are_cut(tmp_path):
    log = RunLog(tmp_path, 0, 0)
    for tick in range(4):
        log.metrics(tick, tick // 2, {"reward/mean": tick})
    log.close()
    RunLog(tmp_path, 2, 1).close()
    assert [json.loads(line)["tick"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1]
