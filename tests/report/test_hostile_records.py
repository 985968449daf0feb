"""Records that nobody should trust: each ends as a page, with a note that names file and line
and what is wrong.
"""

import json
import random
import re

import pytest

from benchmarks import report_runs
from p2o_jax.config import ConfigError
from p2o_jax.report import page, samples, serve
from p2o_jax.report import run as report_run
from p2o_jax.tracking import record_rows
from p2o_jax.tracking.record_rows import read_strict

pytest.importorskip("plotly", reason="pip install 'p2o-jax[report]'")

SCRIPT = "</script><script>window.hacked = 1</script>"
VALUES = (
    None,
    True,
    -1,
    2.5,
    10**30,
    "7",
    SCRIPT,
    [],
    [[1, 2]],
    {},
    {"a": {"b": []}},
    float("nan"),
    float("-inf"),
    "\ud800",
    ["\ud800"],
)
LINES = {  # whole lines that are no row of any file
    b"": "not JSON",
    b"{": "not JSON",
    b"null": "not a JSON object",
    b"[1, 2]": "not a JSON object",
    b"{}": "no `|expected either",
    b"[" * 100_000: "not JSON",
    b'{"step": ' + b"9" * 5000 + b"}": "not JSON",
    '{"step": 0}'.encode("utf-16"): "not JSON|no `",
    b'\xff\xfe{"step": 0}': "not JSON",
    b'{"step": 0, "note": "\xe4"}': "not JSON",
    b"\x00" * 50: "not JSON",
}
FIELDS = (  # file, field, value, note: what ended in a traceback once, or in a page that lied
    ("metrics", "step", None, "`step` is null, expected a whole number of 0 or more"),
    ("metrics", "step", "3", '`step` is "3"'),
    ("metrics", "step", -1, "`step` is -1"),
    ("metrics", "train/loss", "low", '`train/loss` is "low", expected a number'),
    ("metrics", "time/update_s", "1", "`time/update_s`"),
    ("metrics", "time/update_s", [1], "`time/update_s`"),
    ("metrics", "ledger/flops", {}, "`ledger/flops`"),
    ("metrics", "ledger/flops", 10**400, "`ledger/flops` is 1000"),
    ("evaluations", "accuracy", None, "`accuracy` is null, expected a number from 0 to 1"),
    ("evaluations", "accuracy", float("nan"), "`accuracy` is NaN"),
    ("evaluations", "accuracy", 1.5, "`accuracy` is 1.5"),
    ("evaluations", "questions", 0.5, "`questions` is 0.5"),
    ("evaluations", "questions", -3, "`questions` is -3"),
    ("evaluations", "sets", ["gsm8k"], "`sets`"),
    (
        "evaluations",
        "sets",
        {"gsm8k": {}},
        "expected an object whose values are each an object with an accuracy",
    ),
    ("evaluations", "by_family", {"add": "all"}, "`by_family`"),
    ("evaluations", "generated_tokens", "many", "`generated_tokens`"),
    ("templates", "epoch", "0", '`epoch` is "0"'),
    ("templates", "epoch", None, "`epoch` is null"),
    ("templates", "text", None, "`text` is null, expected a text"),
    ("templates", "dev", ["a"], "`dev`"),
    ("templates", "dev", {"a": None}, "`dev`"),
    ("templates", "dev_score", "high", "`dev_score`"),
    ("templates", "parent", 99, "`parent` is 99, expected a candidate before 0"),
    ("templates", "cover_rank", "first", "`cover_rank`"),
    ("questions", "epoch", [0], "`epoch` is \\[0\\]"),
    ("questions", "question_id", {"a": 1}, "`question_id`"),
    ("questions", "plain", [1], "`plain` is \\[1\\], expected a pair of counts"),
    ("questions", "templated", None, "`templated`"),
    ("questions", "templates", {"t": [1, "2"]}, "`templates`"),
    ("questions", "first_hard_epoch", "0", "`first_hard_epoch`"),
    ("samples", "response", None, "`response`"),
    ("samples", "question", 7, "`question`"),
    ("samples", "score", "1", "`score`"),
    ("samples", "question_id", ["\ud800"], "`question_id`"),
)
FILES = {  # whole files that are not what they should be
    "config.json": (
        b"",
        b"{",
        b"[]",
        b'{"reward": 1}',
        b'{"reward": {"success_above": "0.5"}}',
        b'{"a":' * 400 + b"1" + b"}" * 400,
        b"\xff",
    ),
    "versions.json": (b"null x", b"3", b"[" * 10**5),
    "result.json": (b'{"seconds": "1"}', b'{"seconds": NaN}', b"7"),
    "seconds.json": (b"", b"[1.0,", b'["1"]', b"{}", b"[NaN]", b"3"),
}


@pytest.fixture
def small(tmp_path):
    shape = report_runs.Shape(
        4, 2, steps_per_epoch=2, questions=3, hard_per_epoch=2, dev=3, candidates=2, rejected=2
    )
    report_runs.write(tmp_path / "run", shape)
    return tmp_path / "run"


def notes_of(workdir):
    """The run's notes, after its page is made: strict JSON that no text can leave."""
    data = report_run.page_data([workdir], 10**6)
    text = page.embedded(data)
    assert "<" not in text and json.loads(text, parse_constant=lambda name: 1 / 0) == json.loads(
        page.as_json(data)
    )
    return data["runs"][0]["notes"]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_sound_run_has_no_notes(small):
    assert notes_of(small) == []


@pytest.mark.parametrize("name", report_run.FILES)
def test_a_line_that_is_no_row_is_noted_and_the_others_are_shown(small, name):
    path = small / f"{name}.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    for line, rule in LINES.items():
        path.write_bytes(first + line + b"\n" + b"".join(rest))
        result = notes_of(small)
        assert re.match(rf"{name}.jsonl:2: ({rule})", result[0]) and all(
            note.endswith("; left out") for note in result
        ), (line[:40], result)


@pytest.mark.parametrize(("name", "field", "value", "rule"), FIELDS)
def test_a_field_that_is_missing_or_of_another_kind_is_noted(small, name, field, value, rule):
    path = small / f"{name}.jsonl"
    rows = rows_of(path)
    write_rows(path, [{**rows[0], field: value}, *rows[1:]])
    (note,) = notes_of(small)
    assert re.match(f"{name}.jsonl:1: .*{rule}", note) and note.endswith("; left out")
    if name != "samples":
        with pytest.raises(ConfigError, match=f"{name}.jsonl:1: .*{rule}"):
            read_strict(path)


def test_every_field_takes_every_value_or_is_noted(small):
    lot, kinds = random.Random(0), 0
    for name in report_run.FILES:
        path = small / f"{name}.jsonl"
        rows = rows_of(path)
        # one row of each kind
        at = {frozenset(row): number for number, row in enumerate(rows)}.values()
        for number in at:
            fields = sorted(rows[number])
            for field in lot.sample(fields, min(len(fields), 6)):
                cases = [{**rows[number], field: value} for value in lot.sample(VALUES, 6)]
                cases.append({key: value for key, value in rows[number].items() if key != field})
                for case in cases:
                    kinds += 1
                    write_rows(path, [*rows[:number], case, *rows[number + 1 :]])
                    result = notes_of(small)
                    check = record_rows.CHECKS[name]()
                    problems = [problem for row in rows_of(path) if (problem := check(row))]
                    assert bool(problems) == any(
                        note.startswith(f"{name}.jsonl:") and note.endswith("; left out")
                        for note in result
                    ), case
        write_rows(path, rows)
    assert kinds > 200


def test_repeated_rows_are_counted_once(small):
    for name, rule in (
        ("questions", "a second row of epoch 0, question_id"),
        ("templates", "a second row of epoch 0, candidate 0"),
    ):
        before = report_run.page_data([small], 1000)["runs"][0]
        path = small / f"{name}.jsonl"
        rows = rows_of(path)
        write_rows(path, [rows[0], *rows])
        data = report_run.page_data([small], 1000)["runs"][0]
        assert data["notes"][0].startswith(f"{name}.jsonl:2: {rule}") and data[name] == before[name]
        write_rows(path, rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name, contents in FILES.items() for content in contents],
)
def test_a_file_of_another_kind_is_noted(small, name, content):
    (small / name).write_bytes(content)
    assert any(note.startswith(name) for note in notes_of(small))


def test_an_empty_file_a_torn_one_and_a_directory(small):
    (small / "metrics.jsonl").write_bytes(b"")
    (small / "templates.jsonl").write_bytes((small / "templates.jsonl").read_bytes()[:-20])
    (small / "evaluations.jsonl").unlink()
    (small / "evaluations.jsonl").mkdir()
    (small / "result.json").unlink()
    (small / "result.json").mkdir()
    result = notes_of(small)
    assert sorted(result) == [
        f"{name}: cannot be read: Is a directory" for name in ("evaluations.jsonl", "result.json")
    ]


def test_a_server_shows_the_rows_that_can_be_read(small):
    path = small / "samples.jsonl"
    rows = rows_of(path)
    bad = [{**rows[0], "question_id": value} for value in VALUES if not isinstance(value, str)]
    write_rows(path, [*bad, *rows])
    shown = samples.SampleFile(path).page("", "all", "all", "first", 0)
    assert (shown["total"], shown["bad"]) == (len(rows), len(bad)) and json.loads(
        page.as_json(shown)
    )["rows"]
    source = serve.Source([small])
    assert source.newest()[1]["runs"][0]["samples"]["total"] == len(rows) + len(bad)
    for query in (
        "run=0",
        "run=x&page=1",
        f"run=0&page={'9' * 5000}",
        "run=-5&page=0&search=&status=&prompt=&order=",
        "run=0&page=%ff",
    ):
        assert source.samples_page(query) is None


def test_names_of_files_cannot_leave_the_page(tmp_path):
    folder = tmp_path / f"<b>{chr(0xDC80)}\x1b[31m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({SCRIPT: SCRIPT, "__proto__": 1}))
    html = page.render(report_run.page_data([folder], 1000))
    html.encode("utf-8")
    assert "<b>" not in html and SCRIPT not in html and "\x1b" not in html
