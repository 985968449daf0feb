"""Public layouts, missing columns, and files in which a name is there twice."""

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from p2o_jax import config
from p2o_jax.data import layouts, sources

CFG = config.DataConfig(prompt_template="{question}")
USER = [{"role": "user", "content": "6 * 7?"}]
CHAT = [*USER, {"role": "assistant", "content": r"It is \boxed{42}."}]
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": USER,
    "ability": "math",
    "reward_model": {"ground_truth": "42", "style": "rule"},
    "extra_info": {"index": 0, "split": "train"},
}
OPEN_R1 = {
    "problem": "6 * 7?",
    "solution": r"It is \boxed{42}.",
    "answer": "42",
    "problem_type": "Algebra",
    "source": "olympiads",
    "uuid": "u",
    "generations": ["a"],
    "messages": CHAT,
}
LAYOUTS = {
    "verl": (VERL, "prompt", "reward_model.ground_truth"),
    "open-r1": (OPEN_R1, "problem", "answer"),
    "DeepScaleR": (
        {"problem": "6 * 7?", "answer": "42", "solution": "6 * 7 = 42"},
        "problem",
        "answer",
    ),
    "MATH": (
        {"problem": "6 * 7?", "level": "Level 1", "type": "Algebra", "solution": r"\boxed{42}"},
        "problem",
        "solution",
    ),
    "MATH-500": (
        {"problem": "6 * 7?", "solution": "-", "answer": "42", "subject": "Algebra", "level": 1},
        "problem",
        "answer",
    ),
    "TRL": ({"prompt": USER, "solution": r"\boxed{42}"}, "prompt", "solution"),
    "chat messages": ({"messages": CHAT}, "messages", "messages"),
    "other names": ({"Problem": "6 * 7?", "Answer": 42}, "Problem", "Answer"),
}


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def problems(path, cfg=CFG):
    with pytest.raises(config.ConfigError) as error:
        sources.load(path, cfg)
    return [line.replace(str(path), "FILE") for line in error.value.problems]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_public_layout_is_recognised_and_named(tmp_path, name, suffix):
    row, question_field, answer_field = LAYOUTS[name]
    path = write(tmp_path / f"some{suffix}", [row])
    loaded = sources.load(path, CFG)
    (question,) = loaded.questions
    assert (list(question.messages), question.answer) == (USER, "42")
    assert loaded.notices[0] == (
        f'{path}: 1 record read in the layout {name}: question from "{question_field}", answer'
        f' from "{answer_field}"'
    )
    assert question_field not in question.meta


def test_other_columns_stay_with_the_question(tmp_path):
    (question,) = sources.load(write(tmp_path / "a.parquet", [VERL]), CFG).questions
    assert question.meta["data_source"] == "openai/gsm8k"
    assert question.meta["extra_info"] == {"index": 0, "split": "train"}


def test_columns_that_the_config_names_come_first(tmp_path):
    row = {**OPEN_R1, "question": "1 + 1?", "extra": {"gold": {"value": 2}}}
    path = write(tmp_path / "a.jsonl", [row])
    loaded = sources.load(path, CFG)
    assert loaded.questions[0].text == "1 + 1?" and loaded.notices == []
    cfg = config.DataConfig(prompt_template="{question}", answer_field="extra.gold.value")
    assert sources.load(path, cfg).questions[0].answer == "2"
    cfg = config.DataConfig(question_field="problem", prompt_template="{question}")
    assert sources.load(path, cfg).questions[0].text == "6 * 7?"
    cfg = config.DataConfig(answer_field="", prompt_template="{question}")
    assert sources.load(write(tmp_path / "b.jsonl", [VERL]), cfg).questions[0].answer == ""


def test_hints_are_read_where_they_are_asked_for(tmp_path):
    row = {"question": "1 + 1?", "answer": "2"}
    hints = (" Count. ", "", None)
    rows = [{**row, "question": f"{n}?", "info": {"hint": h}} for n, h in enumerate(hints)]
    path = write(tmp_path / "a.jsonl", rows)
    loaded = sources.load(path, CFG, hint_field="info.hint")
    assert [q.hint for q in loaded.questions] == ["Count.", "", ""]
    assert [q.hint for q in sources.load(path, CFG).questions] == ["", "", ""]


def test_missing_hints_and_hints_that_are_no_texts(tmp_path):
    row = {"question": "1?", "answer": "2"}
    path = write(tmp_path / "a.jsonl", [{**row, "clue": "Count."}, {**row, "hint": 3}])
    with pytest.raises(config.ConfigError) as error:
        sources.load(path, CFG, hint_field="hint")
    assert [line.replace(str(path), "FILE") for line in error.value.problems] == [
        'FILE:1: no field "hint" (config.data.hint_field); it has question, answer, clue',
        "FILE:2: hint: expected a text, got int",
    ]
    path = write(tmp_path / "b.jsonl", [{**row, "hints": "Count."}])
    with pytest.raises(config.ConfigError, match=r"did you mean --config\.data\.hint_field=hints"):
        sources.load(path, CFG, hint_field="hint")


def test_a_chat_with_an_answer_of_its_own(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"messages": CHAT, "answer": "43"}])
    (question,) = sources.load(path, CFG).questions
    assert (list(question.messages), question.answer) == (USER, "43")
    assert problems(write(tmp_path / "b.jsonl", [{"messages": USER}])) == [
        "FILE:1: messages: the last message must be the assistant's"
    ]


def test_solutions_are_converted_and_counted(tmp_path):
    rows = [{"question": f"{i}?", "answer": f"so\n#### {i}"} for i in range(3)]
    path = write(tmp_path / "a.jsonl", [*rows, {"question": "x", "answer": r"\boxed{y}"}])
    loaded = sources.load(path, CFG)
    assert [q.answer for q in loaded.questions] == ["0", "1", "2", "y"]
    assert loaded.notices == [
        f"{path}: 4 reference answers are solutions; their final answers are used: 3 after ####,"
        r" 1 in the last \boxed{} (config.data.answers)"
    ]
    cfg = config.DataConfig(answers="raw")
    loaded = sources.load(path, cfg)
    assert loaded.questions[0].answer == "so\n#### 0" and loaded.notices == []


def test_answers_stay_raw_for_a_function_that_judges_alone():
    def answers(fn):
        reward = config.RewardConfig(fn=fn)
        return config.resolve(config.Config(reward=reward)).data.answers

    assert [answers(fn) for fn in ("", "a:b", "correct,a:b", "format")] == [
        *("final", "raw", "final", "raw"),
    ]


def test_a_wrong_column_is_reported_once_with_what_exists(tmp_path):
    rows = [{"task": f"{i}?", "info": {"gold": str(i)}} for i in range(30)]
    path = write(tmp_path / "a.jsonl", rows)
    assert problems(path) == [
        'FILE:1: no field "question" (config.data.question_field); no field "answer"'
        " (config.data.answer_field); it has task, info.gold; 29 more like it"
    ]
    cfg = config.DataConfig(question_field="tasks", answer_field="info.god")
    (line,) = problems(path, cfg)
    assert "did you mean --config.data.question_field=task?" in line
    assert "did you mean --config.data.answer_field=info.gold?" in line
    cfg = config.DataConfig(question_field="text")
    (line,) = problems(write(tmp_path / "b.jsonl", [OPEN_R1] * 3), cfg)
    assert "did you mean --config.data.question_field=problem?" in line and "2 more" in line


def test_records_of_several_layouts_are_read_one_by_one(tmp_path):
    for name in ("verl", "MATH", "other names"):
        row, *_ = LAYOUTS[name]
        write(tmp_path / f"{name}.jsonl", [{**row, "id": name}])
    loaded = sources.load(tmp_path, CFG)
    assert {q.answer for q in loaded.questions} == {"42"}
    assert [line.partition(": question")[0].partition(": ")[2] for line in loaded.notices[:3]] == [
        f"1 record read in the layout {name}" for name in ("MATH", "other names", "verl")
    ]


def test_a_name_that_is_there_twice_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"question": "q", "answer": 1, "answer": 2}\n{"question": "q", "x": {"y": 1, "y": 1}}\n'
    )
    assert problems(path) == [
        'FILE:1: the key "answer" more than once',
        'FILE:2: the key "y" more than once',
    ]
    path = tmp_path / "a.json"
    path.write_text('[{"question": "q", "a": 1, "b": 2, "a": 1, "b": 2}]')
    assert problems(path) == ['FILE: the keys "a", "b" more than once']
    path = tmp_path / "a.csv"
    path.write_text("question,answer,answer\nq,1,2\n")
    assert problems(path) == ['FILE:1: the column "answer" more than once']
    path = tmp_path / "a.parquet"
    columns = [pyarrow.array(["q"]), pyarrow.array(["1"]), pyarrow.array(["2"])]
    table = pyarrow.Table.from_arrays(columns, names=["question", "answer", "answer"])
    pyarrow.parquet.write_table(table, path)
    assert problems(path) == ['FILE: the column "answer" more than once']


def test_the_documentation_lists_every_layout():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line[:1] == "|"}
    for layout in layouts.LAYOUTS:
        if layout.name != "other names":
            paths = (layout.question, *layout.marks)
            assert all(f"`{path}`" in rows[layout.name] for path in paths)
            assert f"`{layout.answer}`" in rows[layout.name] or layout.name == layouts.CHAT


def test_long_csv_fields_are_read(tmp_path):
    path, text = tmp_path / "a.csv", "why? " * 40_000
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["question", "answer"], [text, "1"]])
    assert sources.load(path, CFG).questions[0].text == text
