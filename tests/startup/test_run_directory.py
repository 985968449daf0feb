"""What a start refuses because of what is in the run directory, and how a run begins anew
without losing what was there.
"""

import contextlib
import datetime
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from etils import epath

from p2o_jax import config, main
from p2o_jax.config import Config, ConfigError
from p2o_jax.data.sources import load
from p2o_jax.models import hf_config, identity
from p2o_jax.startup import components, run_directory
from p2o_jax.tracking import results, run_records
from tests.factories import RecordingReporter

CFG = config.resolve(Config(data=config.DataConfig(prompt_template="{question}")))
OWN = replace(CFG, reward=replace(CFG.reward, fn="a.b:c"))
GOLDEN = Path(__file__).parents[1] / "golden/hf/qwen3_tied"
DAMAGES = [
    b"",
    b"[",
    b"\xff\xfe",
    b"null",
    b"3",
    b'"text"',
    b"[[]]",
    b'{"id": 3, "a": {}}',
    b"[" * 5000,
    b'["a", true]',
]
MODEL = {"config.json": [3, "aa"], "model.safetensors": [5, "bb"]}


def questions(path: Path, answers: str, **columns):
    path.write_text(
        "".join(
            json.dumps({"question": f"q{i}", "answer": a, **columns}) + "\n"
            for i, a in enumerate(answers)
        )
    )
    return load(path, CFG.data)


def begun(
    workdir: Path, *parts, cfg: Config = CFG, checkpoints: epath.Path | None = None, model=MODEL
) -> run_directory.RunDirectory:
    """A run that has written its records, read again."""
    run_directory.read(workdir, checkpoints).write(cfg, GOLDEN, model, *parts)
    return run_directory.read(workdir, checkpoints)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_a_run_goes_on_with_the_same_questions_only(tmp_path):
    data = questions(tmp_path / "q.jsonl", "123")
    assert run_directory.read(tmp_path / "run").changed_questions(CFG, data, None) == []
    run = begun(tmp_path / "run", data, None)
    assert (
        run.problems == []
        and run.changed_questions(CFG, questions(tmp_path / "q.jsonl", "123"), None) == []
    )
    for answers in ("12", "124", "1234"):
        (line,) = run.changed_questions(CFG, questions(tmp_path / "q.jsonl", answers), None)
        assert str(tmp_path / "q.jsonl") in line and "holds a run on other questions" in line


def test_columns_that_a_reward_function_judges_by_are_part_of_the_questions(tmp_path):
    plain, hinted = (
        questions(tmp_path / "q.jsonl", "12"),
        questions(tmp_path / "q.jsonl", "12", tests="f(1) == 2"),
    )
    assert begun(tmp_path / "plain", plain).changed_questions(CFG, hinted) == [], (
        "nothing looks at them"
    )
    run = begun(tmp_path / "own", hinted, cfg=OWN)
    assert run.changed_questions(OWN, hinted) == [] and run.notices(OWN, hinted) == []
    (line,) = run.changed_questions(OWN, questions(tmp_path / "q.jsonl", "12", tests="f(1) == 3"))
    assert "holds a run on other questions" in line
    earlier = begun(tmp_path / "earlier", hinted)  # as an earlier version wrote it
    assert earlier.changed_questions(OWN, hinted) == [] and "no record of the columns" in "".join(
        earlier.notices(OWN, hinted)
    )
    (line,) = earlier.changed_questions(
        OWN, questions(tmp_path / "q.jsonl", "13", tests="f(1) == 2")
    )


def test_the_address_of_an_object_is_no_part_of_a_question(tmp_path):
    data = questions(tmp_path / "q.jsonl", "1")
    with_object = [
        replace(data, questions=(replace(data.questions[0], meta={"image": object()}),))
        for _ in range(2)
    ]
    keep = [run_directory.question_digests(OWN, part) for part in with_object]
    assert keep[0] == keep[1] != run_directory.question_digests(OWN, data)


def test_a_run_goes_on_with_the_same_settings_but_those_of_speed_and_length(tmp_path):
    run = begun(tmp_path)
    speed = replace(
        CFG,
        rollout=replace(CFG.rollout, slots=64),
        train=replace(CFG.train, epochs=99),
        mesh=replace(CFG.mesh, tensor=2),
    )
    assert run.changed_settings(speed) == []
    (line,) = run.changed_settings(replace(CFG, optim=replace(CFG.optim, lr=0.5)))
    assert "config.optim.lr=0.5" in line
    (tmp_path / "config.json").write_text('{"preset": ')
    (line,) = run_directory.read(tmp_path).problems
    assert "damaged" in line


def test_a_run_of_another_version_is_refused_in_one_line(tmp_path):
    begun(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["gepa"]["skip_perfect"], values["lora"]["rank"]
    values["gepa"]["older_setting"] = 1
    path.write_text(json.dumps(values))
    (line,) = run_directory.read(tmp_path).changed_settings(CFG)
    assert (
        "another version" in line
        and "config.gepa.older_setting, config.gepa.skip_perfect, config.lora.rank" in line
    )


def test_the_settings_that_name_a_run_are_those_that_may_not_change():
    """Its journals and checkpoints carry their digest: a run on another mesh, or with its
    checkpoints elsewhere, is the same run.
    """
    fixed = run_directory.fixed_settings(CFG)
    assert (
        fixed["optim.lr"] == CFG.optim.lr
        and fixed["preset"] == "recommended"
        and fixed["gepa.patience"] == 8
    )
    assert not [
        key
        for key in fixed
        if key.startswith(("mesh", "checkpoint", "eval", "api"))
        or "." not in key
        and key != "preset"
    ]
    speed = replace(
        CFG,
        rollout=replace(CFG.rollout, slots=64),
        mesh=replace(CFG.mesh, tensor=2),
        checkpoint=config.CheckpointConfig(path="x"),
    )
    assert run_directory.fixed_settings(speed) == fixed
    assert run_directory.fixed_settings(replace(CFG, train=replace(CFG.train, seed=1))) != fixed


@pytest.mark.parametrize(
    "name",
    ["config.json", "questions.json", "versions.json", "run.json", "seconds.json", "wandb.json"],
)
@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[",
        b"\xff\xfe",
        b"null",
        b"3",
        b'"text"',
        b"[[]]",
        b'{"id": 3, "a": {}}',
        b"[" * 5000,
        b'["a", true]',
    ],
)
def test_a_damaged_record_is_one_line_and_stays_as_it_is(tmp_path, name, damage):
    begun(tmp_path)
    (tmp_path / "seconds.json").write_text("[3.5, 1]")
    (tmp_path / "wandb.json").write_text('{"id": "abc"}')
    assert run_directory.read(tmp_path).problems == []
    if (name, damage) == ("versions.json", b'{"id": 3, "a": {}}'):
        return  # nothing reads it
    (tmp_path / name).write_bytes(damage)
    before = contents(tmp_path)
    (line,) = run_directory.read(tmp_path).problems
    assert (
        line.startswith(f"{tmp_path / name}: damaged") and "--restart" in line and "\n" not in line
    )
    assert contents(tmp_path) == before
    assert run_directory.read(tmp_path, restart=True).problems == []


def test_questions_json_that_was_deleted_is_missed(tmp_path):
    begun(tmp_path)
    (tmp_path / "questions.json").unlink()
    assert [
        "questions.json: missing" in line for line in run_directory.read(tmp_path).problems
    ] == [True]


@pytest.mark.parametrize("name", ["questions.jsonl", "metrics.jsonl", "result.json", "config.json"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_with_files_of_others_is_no_run_directory(tmp_path, name, restart):
    (tmp_path / name).write_text('{"question": "theirs"}\n')
    messages = run_directory.read(tmp_path, restart=restart).problems
    assert any(f"holds {name}" in line for line in messages)


def test_the_date_of_the_first_start_is_kept(tmp_path, monkeypatch):
    assert run_directory.read_date(tmp_path) is None
    first = begun(tmp_path).date
    assert first == datetime.date.today().isoformat()

    class Later(datetime.date):
        @classmethod
        def today(cls):
            return cls(2199, 1, 1)

    monkeypatch.setattr(run_directory.datetime, "date", Later)
    assert begun(tmp_path).date == run_directory.read_date(tmp_path) == first
    assert run_directory.read(tmp_path, restart=True).date == "2199-01-01"


def model_files(folder: Path) -> Path:
    folder.mkdir()
    for path in GOLDEN.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "big.safetensors").write_bytes(
        (8).to_bytes(8, "little") + b"{'a': 1}" + bytes(2_000_000)
    )
    return folder


def test_a_model_that_was_replaced_is_refused_by_the_name_of_the_file(tmp_path):
    """One bit of a small file, of a big one's header, first and last block; a file too many, one
    too few; none where it only moved.
    """
    model = model_files(tmp_path / "model")
    run = begun(tmp_path / "run", model=identity.digests(model))
    assert run.changed_model(model, identity.digests(model)) == []
    assert run.changed_model(tmp_path, identity.digests(model_files(tmp_path / "moved"))) == []
    weights = next(p.name for p in GOLDEN.glob("*.safetensors"))
    for name, place in (
        ("config.json", 5),
        ("tokenizer.json", -2),
        (weights, -1),
        *(("big.safetensors", p) for p in (9, 3000, -1)),
    ):
        path = model / name
        before = path.read_bytes()
        changed = bytearray(before)
        changed[place] ^= 1
        path.write_bytes(changed)
        (line,) = run.changed_model(model, identity.digests(model))
        assert (
            line.startswith(f"{model}: {name} has other contents ({len(before):,} bytes then")
            and str(tmp_path / "run") in line
        )
        path.write_bytes(before)
    (model / "vocab.txt").write_text("x")
    (model / "big.safetensors").unlink()
    lines = run.changed_model(model, identity.digests(model))
    assert [line.split(": ")[1] for line in lines] == [
        "big.safetensors is missing",
        "vocab.txt is new",
    ]


def test_every_trained_weight_shows_in_a_sampled_digest(tmp_path):
    """4 MB, of which 66 blocks are read: noise on all weights is seen, and so is another size."""
    path = tmp_path / "a.safetensors"
    digests = set()
    for contents_ in (b"\0" * 4_000_000, b"\1" * 4_000_000, b"\0" * 4_000_001):
        path.write_bytes((2).to_bytes(8, "little") + b"{}" + contents_)
        digests.add(str(identity.digests(tmp_path)))
    assert len(digests) == 3


def test_a_model_of_the_hub_stays_at_its_revision(tmp_path, monkeypatch):
    import huggingface_hub

    revision = "0123456789" * 4
    snapshot = tmp_path / "models--a--b" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    cfg = replace(CFG, model=replace(CFG.model, path="a/b"))
    run_directory.read(tmp_path / "run").write(cfg, snapshot, MODEL)
    run = run_directory.read(tmp_path / "run")
    assert run.revision("a/b") == revision and run.revision("c/d") is None
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *a, **k: asked.append((a, k["revision"])) or str(snapshot),
    )
    assert hf_config.locate("a/b", run.revision("a/b")) == snapshot
    assert hf_config.locate("a/b") == snapshot and asked == [(("a/b",), revision), (("a/b",), None)]


def test_a_run_of_an_earlier_version_goes_on_with_a_notice(tmp_path):
    begun(tmp_path)
    (tmp_path / "run.json").unlink()
    run = run_directory.read(tmp_path)
    assert run.problems == [] and run.changed_model(GOLDEN, {}) == []
    assert ["no record of its model" in line for line in run.notices(CFG)] == [True]
    assert begun(tmp_path).notices(CFG) == [] and begun(tmp_path).run["model"]["files"] == MODEL


def test_lost_checkpoints_are_no_reason_to_begin_at_the_first_step(tmp_path):
    """A folder that is gone, or empty where there was a whole one; not a run that was killed
    before its first.
    """
    run = begun(tmp_path)
    run.check_begin()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{"tick": 0, "step": 0}\n')
    run_directory.read(tmp_path).check_begin()
    run.note_checkpoint()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"no checkpoint, but .* \(metrics\.jsonl\).*--restart"):
        run_directory.read(tmp_path).check_begin()
    assert run_directory.read(tmp_path, restart=True).run["checkpoints"] is False
    (tmp_path / "run.json").unlink()
    (tmp_path / "checkpoints").rmdir()
    with pytest.raises(ConfigError, match="no checkpoint, but"):
        run_directory.read(tmp_path).check_begin()
    assert {**contents(tmp_path), "run.json": before["run.json"]} == before


def test_beginning_anew_moves_what_the_run_wrote_and_nothing_else(tmp_path):
    written = [
        "checkpoints/3/learner/a",
        "checkpoints_damaged/2/b",
        "metrics.jsonl",
        "metrics.jsonl.damaged-1",
        "gepa/journal",
        "run.json",
    ]
    written += [
        "questions.json",
        "versions.json",
        "config.json",
        "tensorboard/events",
        "wandb/x",
        "result.json",
        "seconds.json",
    ]
    theirs = ["notes.txt", "model/config.json", "previous-1/mine"]
    for name in (*written, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    begun(tmp_path)
    before = contents(tmp_path)
    assert str(tmp_path / "previous-2") in run_directory.read(tmp_path, restart=True).put_away()
    expected = {
        **{name: before[name] for name in theirs},
        **{f"previous-2/{name}": before[name] for name in written},
    }
    assert contents(tmp_path) == expected
    assert (
        "no run in" in run_directory.read(tmp_path, restart=True).put_away()
        and contents(tmp_path) == expected
    )


def test_a_kill_while_records_are_moved_leaves_a_run_that_does_not_go_on_by_itself(
    tmp_path, monkeypatch
):
    for count in range(1, 9):
        workdir = tmp_path / str(count)
        run = begun(workdir)
        run.note_checkpoint()
        for name in ("checkpoints/1/a", "metrics.jsonl", "seconds.json"):
            (workdir / name).parent.mkdir(parents=True, exist_ok=True)
            (workdir / name).write_text("[1]")
        left, rename = [count], Path.rename

        def killed(self, target, left=left, rename=rename):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as m:
            m.setattr(Path, "rename", killed)
            with contextlib.suppress(KeyboardInterrupt):
                run_directory.read(workdir, restart=True).put_away()
        again = run_directory.read(workdir)
        checkpoints, rows = (workdir / "checkpoints").exists(), (workdir / "metrics.jsonl").exists()
        if not checkpoints and rows:
            with pytest.raises(ConfigError, match="--restart"):
                again.check_begin()
        assert rows or not checkpoints, "a checkpoint without its rows would go on"
        run_directory.read(workdir, restart=True).put_away()
        assert [p.name for p in workdir.iterdir() if not p.name.startswith("previous-")] == []


def test_checkpoints_elsewhere_belong_to_one_run(tmp_path):
    where = epath.Path(tmp_path / "shared")
    where.mkdir()
    run = begun(tmp_path / "a", checkpoints=where)
    assert (
        run.problems == [] and begun(tmp_path / "a", checkpoints=where).run["id"] == run.run["id"]
    )
    for restart in (False, True):
        (line,) = run_directory.read(tmp_path / "b", where, restart).problems
        assert (
            f"holds the checkpoints of the run in {tmp_path / 'a'}" in line
            and str(where / "owner.json") in line
        )
    (tmp_path / "a").rename(tmp_path / "moved")
    assert run_directory.read(tmp_path / "moved", where).problems == []
    assert run_directory.read(tmp_path / "a", where).run["id"] == run.run["id"], (
        "the run directory was lost with its host"
    )
    (where / "owner.json").write_text("{")
    (line,) = run_directory.read(tmp_path / "moved", where).problems
    assert "owner.json: damaged" in line


def test_checkpoints_elsewhere_are_moved_beside_their_folder(tmp_path):
    where = epath.Path(tmp_path / "shared")
    for name in ("3/learner", "4.orbax-checkpoint-tmp/x", "best.json", "theirs.txt"):
        (tmp_path / "shared" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shared" / name).write_text(name)
    begun(tmp_path / "a", checkpoints=where)
    run_directory.read(tmp_path / "a", where, restart=True).put_away()
    assert sorted(contents(tmp_path / "shared")) == ["theirs.txt"]
    assert sorted(contents(tmp_path / "shared_previous-1")) == [
        "3/learner",
        "4.orbax-checkpoint-tmp/x",
        "best.json",
        "owner.json",
    ]
    assert sorted(contents(tmp_path / "a")) == [
        f"previous-1/{n}" for n in ("config.json", "questions.json", "run.json", "versions.json")
    ]
    assert begun(tmp_path / "a", checkpoints=where).problems == []


def test_a_comparison_is_moved_with_its_runs(tmp_path):
    (tmp_path / "result.json").write_text("1")
    (tmp_path / "previous-1").mkdir()
    run_directory.put_away_comparison(tmp_path)
    run_directory.put_away_comparison(tmp_path)
    assert contents(tmp_path) == {"previous-2/result.json": b"1"}


def test_what_accuracies_depend_on(tmp_path):
    held = [questions(tmp_path / "q.jsonl", "12")]
    of = lambda cfg, parts=held: run_directory.evaluation_digest(cfg, parts)  # noqa: E731
    assert of(replace(CFG, eval=replace(CFG.eval, every_steps=7))) == of(CFG)
    others = [
        of(replace(CFG, eval=replace(CFG.eval, **change)))
        for change in ({"rollouts": 3}, {"temperature": 1.0}, {"max_questions": 1})
    ]
    others.append(of(CFG, [questions(tmp_path / "q.jsonl", "13")]))
    assert len({of(CFG), *others}) == 5


def test_every_record_is_known_to_the_restart():
    assert {*run_records._SHAPES} <= {*run_records._NAMES}


@pytest.mark.parametrize(
    ("flags", "runs"),
    [(["--config.arms=()"], ["run"]), (["--config.arms=('a', 'b')"], ["run/a", "run/b"])],
)
@pytest.mark.parametrize("restart", [False, True])
def test_the_flag_reaches_every_run(tmp_path, monkeypatch, flags, runs, restart):
    """Of a comparison, the old result is moved once all of its runs have ended."""
    asked = []
    monkeypatch.setattr(main, "print_next", lambda *paths: None)
    monkeypatch.setattr(
        main, "train_one", lambda cfg, workdir, poll, restart: asked.append((str(workdir), restart))
    )
    monkeypatch.setattr(results, "write", lambda workdir, arms: None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("old")
    given = [
        "--config=configs/smoke.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.mesh.cpu_devices=8",
        *flags,
    ]
    main.main([*given, *(["--restart"] if restart else [])])
    assert asked == [(str(tmp_path / name), restart) for name in runs]
    assert (tmp_path / "run/previous-1/result.json").exists() == (restart and len(runs) == 2)
    with pytest.raises(ConfigError, match="--restart=yes: takes no value"):
        main.main([*given, "--restart=yes"])


def test_starts_in_one_run_directory(tmp_path, monkeypatch):
    """As the command makes them, without its loop: a first one, one with another base, without
    checkpoints, anew, and a second.
    """
    monkeypatch.setattr(components.Components, "_compile_ahead", lambda self, step: None)
    model, workdir = shutil.copytree(GOLDEN, tmp_path / "model"), tmp_path / "run"
    questions(tmp_path / "q.jsonl", "12")
    cfg = replace(
        CFG,
        model=replace(CFG.model, path=str(model)),
        gepa=replace(CFG.gepa, enabled=False),
        lora=config.LoraConfig(rank=2),
    )
    cfg = replace(
        cfg,
        data=replace(cfg.data, path=str(tmp_path / "q.jsonl"), max_prompt_tokens=32),
        mesh=config.MeshConfig(fsdp=1, data=8),
    )
    rollout = replace(
        cfg.rollout,
        questions=2,
        group_size=4,
        max_new_tokens=4,
        prompt_buckets=(32,),
        prompt_cache_tokens=1024,
        prefill_tokens=64,
    )
    cfg = replace(
        cfg,
        rollout=rollout,
        optim=replace(cfg.optim, minibatch_questions=2),
        loss=replace(cfg.loss, kl="k3"),
    )

    def start(restart: bool = False) -> tuple[int, list[str], str]:
        """Its first tick, what it reported, and the key of its journals; it makes one step."""
        reporter = RecordingReporter()
        parts = components.Components(cfg, workdir, reporter, restart)
        try:
            state = parts.open_state(lambda state: False)
            parts.record.log.rows("metrics", state.tick, [{"step": state.step}])
            parts.checkpoints.save(replace(state, tick=state.tick + 1, step=state.step + 1))
        finally:
            parts.close()
        return state.tick, reporter.lines, parts.journals.settings

    def refused() -> str:
        before = contents(workdir)
        with pytest.raises(ConfigError) as e:
            start()
        assert contents(workdir) == before
        (line,) = e.value.problems
        return line

    tick, lines, journals = start()
    assert tick == 0 and all("do not ask for a \\boxed{}" in line for line in lines)
    assert start()[::2] == (1, journals)
    weights = next(model.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x3c")
    assert f"{weights.name} has other contents" in refused()
    before = contents(workdir)
    tick, lines, other = start(restart=True)
    assert (
        tick == 0
        and other != journals
        and f"the records so far are in {workdir / 'previous-1'}" in lines[-1]
    )
    assert contents(workdir / "previous-1") == before
    shutil.rmtree(workdir / "checkpoints")
    assert "no checkpoint, but" in refused()
