"""The grade command: files in, grades out, errors."""

import json
import subprocess
import sys

import pytest

from p2o_jax import grade
from p2o_jax.config import ConfigError
from p2o_jax.offline import grade as offline_grade

ROWS = [
    {"response": r"<think>\boxed{3}</think>It is \boxed{4}.", "answer": 4, "id": "a"},
    {"response": r"\boxed{\frac{1}{2}}", "answer": "0.5", "tags": ["x", None], "score": 1.5},
    {"response": r"\boxed{3}", "answer": "3t"},
    {"response": "The answer is 72", "answer": "40 + 32 = 72\n#### 72"},
    {"response": r"<think>\boxed{5}", "answer": "5", "status": "mine"},
    {"response": r"\boxed{9^{9^{9^9}}}", "answer": "5"},
    {"response": "\ud800 nothing", "answer": 0.00001},
]
GRADES = [  # strict, lenient, extracted, status
    (1.0, 1.0, "4", "correct"),
    (1.0, 1.0, r"\frac{1}{2}", "correct"),
    (0.0, 0.0, "3", "wrong"),
    (0.0, 1.0, "72", "no_answer"),
    (0.0, 0.0, None, "no_answer"),
    (0.0, 0.0, "9^{9^{9^9}}", "time_out"),
    (0.0, 0.0, None, "no_answer"),
]


def write(path, *rows):
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows),
        encoding="utf-8",
    )
    return path


def run(path, out, *flags):
    grade.run(
        [f"--responses={path}", f"--out={out}", "--config.reward.workers=1", *map(str, flags)]
    )
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def problems(*argv):
    with pytest.raises(ConfigError) as e:
        grade.run([str(a) for a in argv])
    return list(e.value.problems)


def test_lines_come_back_with_their_grades(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(offline_grade, "AT_ONCE", 3)  # several batches
    path = write(tmp_path / "in.jsonl", *ROWS[:3], "", *ROWS[3:])
    rows = run(path, tmp_path / "out.jsonl", "--config.reward.timeout_s=2")
    names = offline_grade.ADDED
    expected = [
        {**row, **dict(zip(names, grades, strict=True))}
        for row, grades in zip(ROWS, GRADES, strict=True)
    ]
    assert rows == expected
    shown = capsys.readouterr().err
    assert "strict: 2 of 7 right (28.6%), 3 without an answer, 1 timed out, 0 failed" in shown
    assert "lenient: 3 of 7 right (42.9%), 2 without an answer, 1 timed out, 0 failed" in shown
    assert f"the graders disagree on 1 of 7; lines of {path}: 5" in shown  # line 4 is blank
    assert "1 answers are solutions: their final answers are the references" in shown
    assert "1 lines had one of the fields strict, lenient, extracted, status: replaced" in shown


def test_graded_lines_can_be_graded_again_as_text(tmp_path):
    path = write(tmp_path / "in.jsonl", *ROWS[:2])
    run(path, tmp_path / "out.jsonl")
    again = run(tmp_path / "out.jsonl", tmp_path / "again.jsonl", "--config.reward.kind=exact")
    assert [row["strict"] for row in again] == [1.0, 0.0]


def test_a_reward_function_replaces_the_strict_grader_and_sees_the_other_fields(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def reward(messages, response, answer, meta):\n"
        "    return (0.25 if meta['id'] == 'a' else 0.75), answer\n"
    )
    path = write(tmp_path / "in.jsonl", {"response": "x", "id": "a"}, {"response": "y", "id": "b"})
    rows = run(path, tmp_path / "out.jsonl", f"--config.reward.fn={tmp_path / 'mine.py'}:reward")
    assert [(r["strict"], r["status"], r["id"]) for r in rows] == [
        (0.25, "wrong", "a"),
        (0.75, "correct", "b"),
    ]


def test_all_wrong_lines_are_reported_with_file_and_line(tmp_path):
    path = write(
        tmp_path / "in.jsonl",
        ROWS[0],
        {"answer": 1},
        {"response": ["text"], "answer": 1},
        {"response": "a"},
        {"response": "a", "answer": {"b": 1}},
        "[1]",
        "{",
    )
    out = tmp_path / "out.jsonl"
    messages = problems(f"--responses={path}", f"--out={out}")
    assert messages[:5] == [
        f"{path}:2: response: expected a text, got none",
        f"{path}:3: response: expected a text, got list",
        f"{path}:4: answer: missing",
        f"{path}:5: answer: expected a text, a number or a list of them, got an object",
        f"{path}:6: expected a JSON object, got list",
    ]
    assert messages[5].startswith(f"{path}:7: not JSON") and len(messages) == 6
    assert not list(tmp_path.glob("out*"))


def test_missing_and_empty_files_wrong_settings_and_existing_output(tmp_path):
    path, out = write(tmp_path / "in.jsonl", ROWS[0]), tmp_path / "out.jsonl"
    empty = write(tmp_path / "empty.jsonl")
    assert problems(f"--responses={tmp_path / 'no.jsonl'}", f"--out={out}") == [
        f"--responses={tmp_path / 'no.jsonl'}: No such file or directory"
    ]
    assert problems(f"--responses={empty}", f"--out={out}") == [
        f"{empty}: no responses in this file"
    ]
    assert (
        "config.reward.kind=fuzzy"
        in problems(f"--responses={path}", f"--out={out}", "--config.reward.kind=fuzzy")[0]
    )
    assert problems(f"--responses={path}", f"--out={path}") == [
        f"--out: {path} exists and is never overwritten; delete it, or give another name"
    ]
    assert problems(f"--responses={path}", f"--out={tmp_path / 'no' / 'out'}") == [
        f"--out={tmp_path / 'no' / 'out'}: no such directory: {tmp_path / 'no'}"
    ]
    assert path.read_text() == json.dumps(ROWS[0]) + "\n"


def test_a_file_that_appears_while_grading_is_kept(tmp_path, monkeypatch):
    path, out = write(tmp_path / "in.jsonl", ROWS[0]), tmp_path / "out.jsonl"
    graded = offline_grade._graded

    def appear(*args):
        out.write_text("somebody else's")
        return graded(*args)

    monkeypatch.setattr(offline_grade, "_graded", appear)
    assert "never overwritten" in problems(f"--responses={path}", f"--out={out}")[0]
    assert out.read_text() == "somebody else's"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_an_interrupt_leaves_no_output(tmp_path, monkeypatch):
    path, out = write(tmp_path / "in.jsonl", ROWS[0]), tmp_path / "out.jsonl"

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(offline_grade, "_graded", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(path, out)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_grading_does_not_import_jax(tmp_path):
    path = write(tmp_path / "in.jsonl", {"response": r"\boxed{4}", "answer": 4})
    code = (
        "import sys; from p2o_jax import grade; "
        f"grade.run(['--responses={path}', '--out={tmp_path / 'out.jsonl'}']); "
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
