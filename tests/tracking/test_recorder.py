"""A run's records on a second start: what is cut, what is reported, and how long it all took."""

import json
import sys
import time
import types

import pytest

from p2o_jax.config import Config, ConfigError, GepaConfig, TrainConfig
from p2o_jax.runtime.console import printable
from p2o_jax.state import Ledger, RunState
from p2o_jax.tracking import recorder, results, writers
from p2o_jax.tracking.clock import Clock, read_seconds
from p2o_jax.tracking.jsonl import cut
from p2o_jax.tracking.record_rows import read_strict
from p2o_jax.tracking.run_log import RunLog
from p2o_jax.tracking.writers import WandbWriter
from p2o_jax.types import SearchResult
from tests.factories import RecordingReporter


def ticks(path):
    return [json.loads(line)["tick"] for line in path.read_text().splitlines()]


def opened(workdir, tick) -> list[str]:
    reporter = RecordingReporter()
    RunLog(workdir, tick, 0, reporter).close()
    return reporter.lines


@pytest.fixture
def run(tmp_path):
    """The records of four ticks."""
    log = RunLog(tmp_path, 0, 0, RecordingReporter())
    for tick in range(4):
        log.metrics(tick, tick, {"reward/mean": tick})
    log.close()
    return tmp_path


def test_rows_after_the_checkpoint_are_cut(run):
    assert opened(run, 2) == []
    assert ticks(run / "metrics.jsonl") == [0, 1]


@pytest.mark.parametrize("torn", [b'{"tick": 4, "st', b'{"tick": 4}', b"\x00\x00\xff", b"{"])
def test_a_torn_last_line_is_cut_silently(run, torn):
    with open(run / "metrics.jsonl", "ab") as f:
        f.write(torn)
    assert opened(run, 4) == []
    assert ticks(run / "metrics.jsonl") == [0, 1, 2, 3]


def test_a_bad_line_before_the_last_and_missing_ticks_are_told(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(
        edited := "".join([lines[0], "[1, 2]\n", "half a li\n", lines[3]])
    )
    output = opened(run, 4)
    assert [line.removeprefix(str(run)) for line in output] == [
        "/metrics.jsonl:2: no row of this run's; cut out",
        "/metrics.jsonl:3: no row of this run's; cut out",
        "/metrics.jsonl: the file as it was is kept as metrics.jsonl.damaged-1",
        "/metrics.jsonl: there are no rows of the ticks [1, 2]",
    ]
    assert ticks(run / "metrics.jsonl") == [0, 3]
    assert (run / "metrics.jsonl.damaged-1").read_text() == edited
    assert len(opened(run, 4)) == 1, (
        "the rows that are missing are reported again, the copy stays as it is"
    )


CANDIDATE = {
    "epoch": 0,
    "candidate": 0,
    "text": "z",
    "parent": None,
    "dev_score": 0.5,
    "dev": {"q": 0.5},
    "cover_rank": 0,
}
QUESTION = {
    "epoch": 0,
    "question_id": "q",
    "hard": True,
    "plain": [0, 6],
    "templated": [0, 0],
    "templates": {},
    "first_hard_epoch": 0,
    "internalised_epoch": None,
    "relapsed_epoch": None,
}
SAMPLE = {"step": 0, "question_id": "q", "response": "1"}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("metrics", {"step": 0, "reward/mean": 0.5}, {"step": 0, "reward/mean": "0.5"}),
        ("metrics", {"step": 0}, {}),
        (
            "evaluations",
            {"step": 0, "accuracy": 1, "generated_tokens": 2, "by_family": {"a": 1.0}},
            {"step": 0, "accuracy": 1},
        ),
        ("templates", CANDIDATE, {**CANDIDATE, "candidate": 1, "text": None}),
        ("templates", CANDIDATE, CANDIDATE),
        ("questions", QUESTION, {**QUESTION, "plain": [1]}),
        ("samples", SAMPLE, {**SAMPLE, "tick": "0"}),
        ("samples", SAMPLE, {**SAMPLE, "tick": True}),
    ],
)
def test_a_row_that_later_code_could_not_use_is_kept_in_a_copy_only(tmp_path, name, good, bad):
    """Also as the last one, where it has its end and so was not torn off by a kill; a file never
    has its copy overwritten.
    """
    path = tmp_path / f"{name}.jsonl"
    text = json.dumps({"tick": 0, **good}) + "\n" + json.dumps({"tick": 0, **bad}) + "\n"
    for number in (1, 2):
        path.write_text(text)
        messages = []
        assert cut(path, 5, messages.append) == {0}
        assert messages == [
            f"{path}:2: no row of this run's; cut out",
            f"{path}: the file as it was is kept as {name}.jsonl.damaged-{number}",
        ]
        assert path.read_text() == text.splitlines(keepends=True)[0]
        assert path.with_name(f"{name}.jsonl.damaged-{number}").read_text() == text


def test_cutting_is_done_whole_or_not_at_all(run, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    before = (run / "metrics.jsonl").read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cut(run / "metrics.jsonl", 1, print)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_bad_line_before_the_last_is_not_read_over(run):
    path = run / "metrics.jsonl"
    with open(path, "ab") as f:
        f.write(b'{"tick": 4, "st')
    assert [row["tick"] for row in read_strict(path)] == [0, 1, 2, 3]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"half a li\n", b"\x00\xff\n", *lines[3:]]))
    with pytest.raises(ConfigError) as e:
        read_strict(path)
    assert e.value.problems == (
        f"{path}:2: not JSON: b'half a li'",
        f"{path}:3: not JSON: b'\\x00\\xff'",
    )
    assert read_strict(run / "none.jsonl") == []


class FakeWandb(types.ModuleType):
    """Weights & Biases, as far as it is used: a run that is resumed has the server's steps, and
    takes no point at or before the last.
    """

    class Error(Exception):
        pass

    def __init__(self, refuses=""):
        super().__init__("wandb")
        self.refuses, self.runs, self.points, self.last = refuses, [], [], {}
        self.Settings = dict

    def init(self, **options):
        if self.refuses:
            raise self.Error(self.refuses)
        self.runs.append(options)

        def log(values, step, commit):
            assert commit
            if step > self.last.get(options["id"], -1):
                self.last[options["id"]] = step
                self.points.append(values)

        return types.SimpleNamespace(
            log=log, define_metric=lambda *_, **__: None, finish=lambda: self.points.append("end")
        )


CFG = Config(train=TrainConfig(wandb_project="p2o"))


def test_weights_and_biases_is_told_the_same_run_again_after_a_resume(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    for tick in range(2):
        log = RunLog(tmp_path, tick, tick, RecordingReporter(), [WandbWriter(tmp_path, CFG)])
        log.metrics(tick, tick, {"reward/mean": 0.5})
        log.close()
    first, second = wandb.runs
    assert (
        first["id"] == second["id"] and second["resume"] == "allow" and second["project"] == "p2o"
    )
    assert first["config"]["train"]["wandb_project"] == "p2o" and first["name"] == tmp_path.name
    assert wandb.points == [
        {"step": 0, "reward/mean": 0.5},
        "end",
        {"step": 1, "reward/mean": 0.5},
        "end",
    ]
    assert not any(
        b"secret-key" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )


def test_what_is_computed_again_after_a_kill_is_not_drawn_twice(tmp_path, monkeypatch):
    """Ticks: an evaluation and a step at 0, steps at 1 and 2; killed; again from the checkpoint
    at tick 1.
    """
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    first = WandbWriter(tmp_path, CFG)
    first.metrics(0, 0, {"eval/accuracy": 0.1})
    for tick in range(3):
        first.metrics(tick, tick, {"reward/mean": tick})
    second = WandbWriter(tmp_path, CFG)  # the first was killed
    second.metrics(1, 1, {"reward/mean": 1})
    # eval.every_steps has changed: too late for this one
    second.metrics(2, 2, {"eval/accuracy": 0.2})
    second.metrics(2, 2, {"reward/mean": 2})
    second.metrics(3, 3, {"eval/accuracy": 0.3})
    second.metrics(3, 3, {"reward/mean": 3})
    assert [(p["step"], *p.keys() - {"step"}) for p in wandb.points] == [
        (0, "eval/accuracy"),
        (0, "reward/mean"),
        (1, "reward/mean"),
        (2, "reward/mean"),
        (3, "eval/accuracy"),
        (3, "reward/mean"),
    ]


def test_weights_and_biases_that_refuses_or_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb("api_key not configured"))
    with pytest.raises(
        ConfigError,
        match="config.train.wandb_project=p2o: api_key not configured .*WANDB_MODE=offline",
    ):
        WandbWriter(tmp_path, CFG)
    monkeypatch.setattr(writers, "find_spec", lambda name: None)
    assert writers.problems(CFG) == [
        "config.train.wandb_project=p2o needs the package wandb: pip install 'p2o-jax[wandb]'"
    ]
    assert writers.problems(Config()) == []


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install 'p2o-jax[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for tick in range(2):
        log = RunLog(tmp_path, tick, tick, RecordingReporter(), [WandbWriter(tmp_path, CFG)])
        log.metrics(tick, tick, {"reward/mean": 0.5})
        log.close()
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert (
        len([path for path in tmp_path.glob("wandb/offline-run-*") if path.name.endswith(run_id)])
        == 2
    )


def test_the_seconds_of_all_starts_count(tmp_path):
    assert read_seconds(tmp_path) == []
    for ago in (100, 20, 3):
        Clock(tmp_path, time.monotonic() - ago).write()
    assert read_seconds(tmp_path) == pytest.approx([100, 20, 3], abs=0.5)


def test_text_of_a_model_cannot_command_the_terminal():
    hostile = "a\x1b[31mred\x07\r\x9b2J\u202e\u2066\ud800 ü 答\n\tb"
    assert printable(hostile) == "a\\x1b[31mred\\x07\\r\\x9b2J\\u202e\\u2066\\ud800 ü 答\n\tb"


def test_pretraining_is_no_part_of_a_run_s_seconds(tmp_path):
    """It was in those of the first arm, which looked slower than the others."""
    reporter = RecordingReporter()
    reporter.begin -= 100.0
    reporter.seconds["pretraining"] = 90.0
    RunLog(tmp_path, 0, 0, reporter).close()
    assert read_seconds(tmp_path) == [pytest.approx(10.0, abs=2.0)]


def test_an_evaluation_s_line_says_how_it_asked(tmp_path):
    record = recorder.Recorder.__new__(recorder.Recorder)
    record.reporter, record.log, record.watchdog = (
        RecordingReporter(),
        None,
        types.SimpleNamespace(restart=lambda: None),
    )
    for template in ("", "Think."):
        record.evaluation(
            RunState(None), {}, {"accuracy": 0.5, "by_family": {}, "template": template}, {}
        )
    plain, templated = record.reporter.lines
    assert (
        "plain accuracy 0.500" in plain
        and "accuracy under the best template 0.500" in templated
        and "plain" not in templated
    )


def arm(workdir, template, pretraining):
    workdir.mkdir(parents=True)
    evaluations = [
        {"step": 0, "accuracy": 0.1, "template": ""},
        {"step": 0, "accuracy": 0.3, "template": template},
    ]
    row = {"generated_tokens": 5, "by_family": {"add": 0.2}}
    metrics = [
        {"step": 0, "ledger/generated_tokens": 5, "time/pretraining_s": pretraining},
        {"step": 0, "time/pretraining_s": 0.25},
    ]
    for name, rows in (("evaluations", [e | row for e in evaluations]), ("metrics", metrics)):
        (workdir / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (workdir / "seconds.json").write_text("[4.0, 6.0]")
    results.write_one(workdir, workdir, Ledger())


def test_a_comparison_says_how_arms_were_asked_and_what_pretraining_took(tmp_path, capsys):
    arm(tmp_path / "grpo", "", 90.0)
    arm(tmp_path / "gepa_only", "Think.", 0.0)
    results.write(tmp_path, ["grpo", "gepa_only"])
    output, result = capsys.readouterr().out, json.loads((tmp_path / "result.json").read_text())
    assert (
        result["seconds"] == 20.0
        and result["seconds_pretraining"] == 90.4
        and result["templated"] == ["gepa_only"]
    )
    assert (
        "gepa_only (best template)" in output
        and "plain accuracy" not in output
        and "20 s, and 90 s of pretraining" in output
    )
    results.write(tmp_path, ["grpo"])
    assert "plain accuracy" in capsys.readouterr().out
    (tmp_path / "grpo" / "evaluations.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(ConfigError, match="evaluations.jsonl:1: no `accuracy`"):
        results.write(tmp_path, ["grpo"])


def recording(tmp_path, **gepa):
    cfg = Config(gepa=GepaConfig(**gepa))
    questions = types.SimpleNamespace(epoch=lambda step: step)
    engine = types.SimpleNamespace(take_work=lambda: types.SimpleNamespace(metrics=dict))
    compiles = types.SimpleNamespace(count=0, seconds=0.0)
    return recorder.Recorder(cfg, tmp_path, questions, engine, RecordingReporter(), compiles)


def test_an_iteration_of_gepa_says_why_proposals_were_rejected(tmp_path):
    record = recording(tmp_path)
    stats = {
        "iterations": 4.0,
        "rollouts_charged": 512.0,
        "budget": 11040.0,
        "best_dev_score": 0.456,
        "frac_dev_covered": 0.5,
    }
    record.search_progress(stats, ["gate"] * 9 + ["accepted"] * 3 + ["no_fence"] * 4)
    record.search_progress(stats, ["accepted"] * 2)
    start = "  gepa iteration 4: 512/11040 rollouts, "
    assert record.reporter.lines == [
        start
        + "3 of 16 accepted; rejected: 9 not better, 4 no closed fence; best dev 0.46, covered"
        " 0.50",
        start + "2 of 2 accepted; best dev 0.46, covered 0.50",
    ]


def test_a_phase_that_began_with_given_templates_says_so(tmp_path):
    record = recording(tmp_path)
    dropped = [{"outcome": o, "parent": None} for o in ("overlong_prompt", "budget")]
    for events, said in (((), ""), (dropped, "; left out: 1 prompt too long, 1 no budget left")):
        result = SearchResult(
            ("", "a", "b"), (None, None, 0), (), (), ((),) * 3, (1,), {}, tuple(events)
        )
        record.search(RunState(None, hard_ids=("q",)), RunState(None), result)
        assert record.reporter.lines[-1] == f"  it began with the empty template and 1 given{said}"


@pytest.mark.parametrize(
    ("fates", "templates", "said"),
    [
        (
            ["overlong_reflection"] * 3 + ["gate"],
            ("",),
            "all 4 proposals were rejected: 3 reflection prompt too long, 1 not better",
        ),
        ([], ("",), "nothing was proposed"),
        (["accepted", "gate"], ("", "a"), ""),
    ],
)
def test_a_prompt_phase_without_templates_says_why(tmp_path, fates, templates, said):
    record = recording(tmp_path)
    result = SearchResult(
        templates,
        (None, 0)[: len(templates)],
        (),
        (),
        ((),) * len(templates),
        (0,),
        {},
        tuple({"outcome": f, "parent": 0} for f in fates),
    )
    record.search(RunState(None, hard_ids=("a",)), RunState(None), result)
    empty = [
        line
        for line in record.reporter.lines
        if line.startswith("!!! epoch 0: only the empty template")
    ]
    assert (
        len(empty) == bool(said)
        and all(line.endswith(said) for line in empty)
        and len(record.reporter.lines) == 1 + len(empty)
    )


def test_decisions_on_search_are_told_with_both_numbers(tmp_path):
    """No search by decision is no alarm, though all rollouts are plain."""
    record = recording(tmp_path)
    stats = {
        "iterations": 1.0,
        "rollouts_charged": 36.0,
        "budget": 300.0,
        "best_dev_score": 0.5,
        "frac_dev_covered": 0.5,
        "value_search": 1.264,
        "value_training": 0.221,
    }
    record.search_progress(stats, ["accepted"])
    expected = "informative groups expected of an iteration 1.26, of training for its tokens 0.22"
    assert record.reporter.lines.pop().endswith(f"covered 0.50 ({expected})")
    stats |= {"iterations": 0.0, "value_search": 0.0}
    result = SearchResult(("",), (None,), (), (), ((),), (0,), stats)
    record.search(RunState(None, hard_ids=("q",)), RunState(None), result)
    assert record.reporter.lines[1:] == [f"  no search: {expected.replace('1.26', '0.00')}"]
