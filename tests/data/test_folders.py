"""Folders, splits, `datasets` and TensorFlow Datasets on disk, benchmarks by name, and sets
beside each other.
"""

import json
import subprocess
import sys

import benchmark_fixtures as fixtures
import pytest

from p2o_jax import config
from p2o_jax.data import benchmarks, sources

CFG = config.DataConfig(prompt_template="Q: {question} {}")
ROWS = [{"question": f"q{i} größe", "answer": str(i), "level": str(i % 2)} for i in range(5)]
TEST = [{"question": "t", "answer": "1", "level": "0"}]


def problems(path, cfg=CFG):
    with pytest.raises(config.ConfigError) as error:
        sources.load(path, cfg)
    return list(error.value.problems)


def make(kind, folder):
    splits = {"train": ROWS, "test": TEST}
    if kind == "datasets":
        return fixtures.saved(folder, splits)
    if kind == "tfds":
        return fixtures.tfds_folder(folder, splits)
    for name, rows in splits.items():
        write, suffix = (
            (fixtures.parquet, "-00000-of-00001.parquet")
            if kind == "parquet"
            else (fixtures.jsonl, ".jsonl")
        )
        write(folder / "data" / f"{name}{suffix}", rows)
    return folder


@pytest.mark.parametrize("kind", ["datasets", "tfds", "parquet", "jsonl"])
def test_every_kind_of_folder_gives_the_same_questions(tmp_path, kind):
    folder = make(kind, tmp_path / "d")
    for path in (f"{folder}@train", f"hf:{folder}@train", f"tfds:{folder}@train"):
        loaded = sources.load(path, CFG)
        assert (
            sorted(q.answer for q in loaded.questions) == list("01234")
            and loaded.num_duplicates == 0
        )
        assert {q.text for q in loaded.questions} == {f"Q: q{i} größe {{}}" for i in range(5)}
        assert all(q.meta == {"level": str(int(q.answer) % 2)} for q in loaded.questions)
    assert [q.answer for q in sources.load(f"{folder}@test", CFG).questions] == ["1"]
    assert {q.id for q in sources.load(f"{folder}@train", CFG).questions} == {
        q.id for q in sources.load(f"{folder}@train", CFG).questions
    }
    (line,) = problems(folder)
    assert "it has the splits" in line and "@t" in line
    assert "none" in problems(f"{folder}@none")[0]


def test_a_folder_names_no_modules_to_import(tmp_path, monkeypatch):
    folder = fixtures.tfds_folder(tmp_path / "sums", {"train": ROWS})
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (path,) = folder.rglob("features.json")
    for key in ("pythonClassName", "type"):
        features = json.loads(path.read_text())
        features["featuresDict"]["features"]["question"] = {key: "stranger.Feature"}
        path.write_text(json.dumps(features))
        expected = (
            "features.json: stranger.Feature: classes outside TensorFlow Datasets would run code,"
            " and are not loaded"
        )
        for source in (f"{folder}@train", "tfds:sums@train"):
            assert expected in problems(source, config.DataConfig(tfds_dir=str(tmp_path)))[0]


def test_a_data_set_by_name_in_a_folder_of_prepared_ones(tmp_path):
    fixtures.tfds_folder(tmp_path, {"train": ROWS})
    loaded = sources.load(
        "tfds:sums@train[:40%]",
        config.DataConfig(tfds_dir=str(tmp_path), prompt_template="{question}"),
    )
    assert len(loaded.questions) == 2 and {q.source for q in loaded.questions} == {
        "tfds:sums@train[:40%]"
    }


def test_tensorflow_is_not_imported(tmp_path):
    folder = fixtures.tfds_folder(tmp_path, {"train": ROWS})
    code = (
        "import sys\nfrom p2o_jax import config\nfrom p2o_jax.data import sources\nassert"
        f" len(sources.load({str(folder)!r}, config.DataConfig()).questions) =="
        " 5\nprint({'tensorflow', 'jax'} & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "set()"
    )


def test_a_folder_with_one_split_or_none_needs_no_name(tmp_path):
    fixtures.jsonl(tmp_path / "a" / "x.jsonl", ROWS[:2])
    fixtures.jsonl(tmp_path / "a" / "y.jsonl", ROWS[2:])
    fixtures.jsonl(tmp_path / "a" / ".cache" / "z.json", [{"no": "question"}])
    assert len(sources.load(tmp_path / "a", CFG).questions) == 5
    fixtures.saved(tmp_path / "b", {"train": ROWS})
    assert len(sources.load(tmp_path / "b", CFG).questions) == 5


def test_problems_of_a_folder_are_reported(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "a folder without" in problems(tmp_path / "empty")[0]
    fixtures.jsonl(tmp_path / "a" / "train.jsonl", [*ROWS, {"question": "q"}])
    assert (
        "train.jsonl" not in problems(tmp_path / "a")[0]
        and ":6: no field" in problems(tmp_path / "a")[0]
    )
    (tmp_path / "a" / "train.jsonl").write_text("{")
    assert "train.jsonl:1: not JSON" in problems(tmp_path / "a")[0]
    saved = fixtures.saved(tmp_path / "s", {"train": ROWS})
    (saved / "train" / "dataset_info.json").write_text("{")
    assert "cannot be loaded" in problems(f"{saved}@train")[0]
    assert "cannot be loaded" in problems("tfds:no_such_data_set@train")[0]
    # the tests have no network
    assert "cannot be loaded" in problems("hf:nobody/no-such-data-set@train")[0]


def test_a_path_with_an_at_sign_is_that_path(tmp_path):
    path = fixtures.jsonl(tmp_path / "a@b" / "q@train.jsonl", ROWS)
    assert (
        len(sources.load(path, CFG).questions) == len(sources.load(path.parent, CFG).questions) == 5
    )


def test_duplicates_with_another_answer_are_reported(tmp_path):
    rows = [*ROWS, {**ROWS[0], "level": "9"}, {**ROWS[1], "answer": "7"}]
    loaded = sources.load(fixtures.jsonl(tmp_path / "q.jsonl", rows), CFG)
    assert (loaded.num_duplicates, loaded.num_conflicts) == (2, 1)
    assert loaded.notices == [
        f"{tmp_path / 'q.jsonl'}: 2 duplicate questions dropped, 1 of them with another answer than"
        " the one kept"
    ]


def test_columns_and_prompt_are_the_config_s(tmp_path):
    path = fixtures.jsonl(
        tmp_path / "q.jsonl",
        [{"problem": "{0} {question} %s", "gold": 3}, {"problem": "y", "gold": None}],
    )
    cfg = config.DataConfig(
        question_field="problem", answer_field="", prompt_template="a {x} {question} {}"
    )
    loaded = sources.load(path, cfg)
    assert loaded.questions[0].text == "a {x} {0} {question} %s {}"
    assert [q.answer for q in loaded.questions] == ["", ""] and loaded.questions[0].meta == {
        "gold": 3
    }


def test_the_default_prompt_is_the_released_code_s(tmp_path):
    (question,) = sources.load(
        fixtures.jsonl(tmp_path / "q.jsonl", [{"question": "1 + 1?", "answer": 2}]),
        config.DataConfig(),
    ).questions
    assert (
        question.text
        == "Let's think step by step and output the final answer within \\boxed{}.\nQuestion: 1"
        " + 1?"
    )


@pytest.mark.parametrize("name", sorted(fixtures.BENCHMARKS))
def test_benchmarks_are_read_from_their_hub_s_columns(tmp_path, name):
    loaded = benchmarks.BENCHMARKS[name].load(
        config.DataConfig(), str(fixtures.BENCHMARKS[name](tmp_path))
    )
    expected = {"amc23": "8.0", "minerva": r"\frac{8}{2}", "olympiadbench": "1, 2"}.get(name, "8")
    assert (
        loaded.questions[0].answer == expected
        and len(loaded.questions) == 6
        and loaded.name == name
    )
    assert (
        loaded.questions[0].text.endswith("What is 2 + 6?") and "boxed" in loaded.questions[0].text
    )


def test_gsm8k_is_read_from_every_layout(tmp_path):
    cfg = config.DataConfig(question_field="whatever")
    paths = [
        f"{fixtures.gsm8k(tmp_path / 'hub')}@test",
        f"tfds:{fixtures.tfds_folder(tmp_path / 'tfds', {'test': fixtures.gsm8k_rows()})}",
        str(fixtures.jsonl(tmp_path / "test.jsonl", fixtures.gsm8k_rows())),
        str(
            fixtures.jsonl(
                tmp_path / "ours.jsonl", [{"question": q, "answer": a} for q, a in fixtures.SUMS]
            )
        ),
    ]
    for path in paths:
        answers = {q.answer for q in benchmarks.BENCHMARKS["gsm8k"].load(cfg, path).questions}
        assert answers - {"1234"} == {a for _, a in fixtures.SUMS}


def test_sets_by_name():
    assert benchmarks.named(
        "aime24, gsm8k=d@test,mine.jsonl,x=hf:a/b:c@d,tfds:sums@train,hf:a/MATH-x@test"
    ) == [
        ("aime24", ""),
        ("gsm8k", "d@test"),
        ("mine", "mine.jsonl"),
        ("x", "hf:a/b:c@d"),
        ("sums", "tfds:sums@train"),
        ("MATH-x", "hf:a/MATH-x@test"),
    ]
    for wrong, message in (
        ("", "expected a benchmark"),
        ("a/b=c", "expected a benchmark"),
        ("x=", "expected"),
        ("x=1,x=2", "a second set"),
    ):
        with pytest.raises(config.ConfigError, match=message):
            benchmarks.named(wrong)


def test_sets_of_an_evaluation_are_loaded_together_and_all_problems_reported(tmp_path):
    dev = fixtures.jsonl(tmp_path / "dev.jsonl", ROWS)
    sets = benchmarks.load_sets(f"{dev},aime24={fixtures.aime24(tmp_path / 'a')}", CFG)
    assert [(s.name, len(s.questions)) for s in sets] == [("dev", 5), ("aime24", 6)]
    with pytest.raises(config.ConfigError) as e:
        benchmarks.load_sets("x=none.jsonl,aime25=none.jsonl", CFG)
    assert len(e.value.problems) == 2
    assert sources.shared(sets[0], sets) == [
        f"{dev}: 5 of its questions are also training questions"
    ]
