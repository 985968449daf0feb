"""Runs to report on: a synthetic one, and one whose texts are hostile."""

import json

import pytest

from benchmarks import report_runs

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!--<script>",
    "\x00\x07\x1b[31m\u202eback\u2069\ud800 \u2028",
    "a href=javascript:window.hacked=1",
]
LONG = "x" * 1_000_000


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Two epochs of eight policy steps, with templates, hard questions and samples."""
    folder = tmp_path_factory.mktemp("runs") / "p2o"
    shape = report_runs.Shape(
        16, 4, steps_per_epoch=8, questions=30, hard_per_epoch=12, dev=10, candidates=8, rejected=6
    )
    report_runs.write(folder, shape)
    return folder


@pytest.fixture(scope="session")
def hostile_run(run, tmp_path_factory):
    """The run with hostile text wherever text can stand, a line of a megabyte, and a torn last
    line.
    """
    folder = tmp_path_factory.mktemp("hostile") / "<b>run"
    folder.mkdir()
    for path in run.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    _rewrite(folder / "samples.jsonl", ("question", "answer", "template", "response", "status"))
    _rewrite(folder / "templates.jsonl", ("text", "outcome"))
    row = {
        "tick": 9,
        "step": 15,
        "question_id": "<i>",
        "question": LONG,
        "answer": "",
        "template": "",
        "response": LONG,
        "score": 0,
        "status": "wrong",
    }
    with open(folder / "samples.jsonl", "a") as f:
        f.write(json.dumps(row) + '\n[1, 2]\n{"tick": 9, "st')
    evaluations = [
        json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()
    ]
    for row in evaluations:
        row["sets"] = {text: {"accuracy": 0.5} for text in HOSTILE}
    (folder / "evaluations.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in evaluations)
    )
    return folder


def _rewrite(path, names):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {name: HOSTILE[i % len(HOSTILE)] for name in names if row.get(name)}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
