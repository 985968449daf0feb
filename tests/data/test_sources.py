import csv
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o_jax import config
from p2o_jax.data.sources import load
from p2o_jax.types import question_id

CFG = config.DataConfig(prompt_template="{question} Go!")
RECORDS = [
    {"question": "1 + 1?", "answer": "2", "level": 1},
    {"question": "Größe √2?", "answer": "x", "level": 2},
    {"question": "1 + 1?", "answer": "2", "level": 3},
    {"question": 'a, "b"\nc?', "answer": "d", "level": 4},
]


def write(path, records):
    match path.suffix:
        case ".jsonl":
            path.write_text("\n\n".join(json.dumps(r) for r in records) + "\n", encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(records), encoding="utf-8")
        case ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(records[0]))
                writer.writeheader()
                writer.writerows(records)
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def problems(path, cfg=CFG):
    with pytest.raises(config.ConfigError) as error:
        load(path, cfg)
    return [p.replace(str(path), "FILE") for p in error.value.problems]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_load_reads_every_format_alike(tmp_path, suffix):
    loaded = load(write(tmp_path / f"some{suffix}", RECORDS), CFG)
    assert [q.text for q in loaded.questions] == ["1 + 1? Go!", "Größe √2? Go!", 'a, "b"\nc? Go!']
    assert [q.answer for q in loaded.questions] == ["2", "x", "d"]
    assert [str(q.meta["level"]) for q in loaded.questions] == ["1", "2", "4"]
    assert {q.source for q in loaded.questions} == {f"some{suffix}"}
    assert [q.id for q in loaded.questions] == [question_id(q.messages) for q in loaded.questions]
    assert loaded.num_duplicates == 1
    lines = {".jsonl": (1, 3, 7), ".json": (1, 2, 4), ".csv": (2, 3, 6), ".parquet": (1, 2, 4)}
    assert loaded.lines == lines[suffix]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_message_lists_are_taken_as_they_are(tmp_path, suffix):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1?"}]
    loaded = load(
        write(tmp_path / f"some{suffix}", [{"prompt": messages, "gold": 1.5}]),
        config.DataConfig(question_field="prompt", answer_field="gold"),
    )
    assert list(loaded.questions[0].messages) == messages
    assert loaded.questions[0].answer == "1.5"


def test_every_problem_is_reported_at_once(tmp_path):
    user = {"role": "user", "content": "?"}
    lines = [
        '{"question": "fine", "answer": 7}',
        "{broken",
        "[1]",
        '{"answer": "1"}',
        '{"question": "q", "reply": "1"}',
        '{"question": null, "answer": "1"}',
        '{"question": " ", "answer": "1"}',
        '{"question": 5, "answer": "1"}',
        '{"question": "q", "answer": null}',
        '{"question": "q", "answer": "  "}',
        '{"question": "q", "answer": NaN}',
        '{"question": "q", "answer": {}}',
        '{"question": "q", "answer": [[1]]}',
        json.dumps({"question": [user, {"role": "assistant", "content": "!"}], "answer": 1}),
        json.dumps({"question": [], "answer": 1}),
        json.dumps({"question": [{"role": "tool", "content": "?"}], "answer": 1}),
        json.dumps({"question": [{"role": "user", "content": ""}], "answer": 1}),
        '{"question": "\\ud800", "answer": "1"}',
        "[" * 100_000,
    ]
    path = tmp_path / "bad.jsonl"
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    lines = problems(path)
    expected = [
        "2: not JSON",
        "3: expected a JSON object, got list",
        '4: no field "question" (config.data.question_field); it has answer',
        '5: no field "answer" (config.data.answer_field); it has question, reply',
        "6: question: missing",
        "7: question: empty",
        "8: question: expected a text or a list of messages, got int",
        "9: answer: missing",
        "10: answer: empty",
        "11: answer: missing",
        "12: answer: expected a text, a number or a list of them, got an object",
        "13: answer: expected a list of texts and numbers, got a list of other values",
        "14: question: the last message must be the user's",
        "15: question: the last message must be the user's",
        "16: question: message 1: expected",
        "17: question: message 1: empty",
        "18: question: half a surrogate pair",
        "19: not JSON: nested too deeply",
        "20: not UTF-8",
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(f"FILE:{start}"), (line, start)


def test_many_problems_are_cut(tmp_path):
    path = write(tmp_path / "bad.jsonl", [{"question": "", "answer": i} for i in range(50)])
    lines = problems(path)
    assert len(lines) == 21 and lines[-1] == "... and 30 more"


def test_unusable_files_are_named(tmp_path):
    assert problems(tmp_path / "none.jsonl") == ["FILE: no such file"]
    for suffix in (".jsonl", ".csv"):
        empty = tmp_path / f"empty{suffix}"
        empty.write_text("\n")
        assert problems(empty) == ["FILE: no questions in it"]
    for name, text, rule in [
        ("a.json", "[]", "FILE: no questions in it"),
        ("b.json", "{}", "FILE: expected a JSON list of objects, got dict"),
        (
            "c.json",
            '[{"question": "q", "answer": 1}, 3]',
            "FILE:2: expected a JSON object, got int",
        ),
        ("d.parquet", "PAR1", "FILE: not Parquet"),
        ("e.csv", 'question,answer\nq,"1\n', "FILE:2: not CSV"),
        ("f.csv", "question,answer\nq,1,2\n", "FILE:2: more values than columns"),
        ("g.csv", "question,answer\nq\n", "FILE:2: answer: missing"),
        ("h.txt", "?", "FILE: suffix must be one of .jsonl, .json, .csv, .parquet"),
    ]:
        (tmp_path / name).write_text(text)
        assert problems(tmp_path / name)[0].startswith(rule), name
    (tmp_path / "i.csv").write_bytes(b"question,answer\n\xff,1\n")
    assert "not UTF-8" in problems(tmp_path / "i.csv")[0]


def test_byte_order_mark_is_no_part_of_a_column(tmp_path):
    for suffix in (".csv", ".jsonl", ".json"):
        path = write(tmp_path / f"bom{suffix}", RECORDS[:1])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert load(path, CFG).questions[0].answer == "2"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "x"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["question", "answer", "x"]), json_values) | json_values,
        min_size=1,
        max_size=4,
    )
)
def test_any_json_is_loaded_or_refused_by_line(tmp_path_factory, records):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in records), encoding="utf-8")
    try:
        loaded = load(path, CFG)
    except config.ConfigError as e:
        assert all(re.match(rf"{re.escape(str(path))}:\d+: ", p) for p in e.problems)
    else:
        assert len(loaded.questions) + loaded.num_duplicates == len(records)


@given(st.binary(max_size=60), st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]))
def test_any_bytes_are_loaded_or_refused(tmp_path_factory, raw, suffix):
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(raw)
    with pytest.raises(config.ConfigError):
        load(path, CFG)
