"""The prepare command as a user runs it, on raw files in the hubs' columns."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import benchmark_fixtures as fixtures
import pytest

from p2o_jax import config, prepare
from p2o_jax.config import ConfigError
from p2o_jax.data import recipes, sources

ROOT = Path(__file__).parents[2]
MODEL = Path(__file__).parents[1] / "golden" / "hf" / "qwen3_tied"


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def problems(*argv):
    with pytest.raises(ConfigError) as e:
        prepare.run([str(a) for a in argv])
    return e.value.problems


def deepscaler_rows(count=60):
    rows = [
        {"problem": f"How many are {i} and {i}?", "answer": str(2 * i), "solution": "Add."}
        for i in range(count)
    ]
    return [
        *rows,
        rows[0],
        {**rows[1], "answer": "7"},
        {**rows[2], "problem": " "},
        {**rows[3], "problem": "No answer?", "answer": None},
    ]


ANSWERS = {
    "yes_no": ("Yes", "No"),
    "integer": ("3", "-4"),
    "expression": ("x^2", r"\sqrt{2}"),
    "number": (r"\frac{1}{2}", "0.25"),
}
COUNTS = {"yes_no": 120, "integer": 300, "expression": 150, "number": 90}


def deepmath_rows():
    return [
        {
            "question": f"A {kind} question, number {i}?",
            "final_answer": ANSWERS[kind][i % 2],
            "difficulty": 5.0 if i % 10 == 9 else 7.5,
            "topic": "Algebra",
            "r1_solution_1": "long",
        }
        for kind, count in COUNTS.items()
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def deepscaler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepscaler")
    (folder / "deepscaler.json").write_text(json.dumps(deepscaler_rows()))
    bench = fixtures.jsonl(
        folder / "bench.jsonl", [{"problem": "How many are 5 and 5?", "answer": 10}]
    )
    argv = [
        "deepscaler",
        f"--raw={folder / 'deepscaler.json'}",
        f"--out={folder / 'out'}",
        "--test=10",
        "--train=15,30",
    ]
    prepare.run([*argv, f"--benchmarks=aime24={bench}", f"--model={MODEL}"])
    return folder


def test_sets_are_disjoint_nested_and_of_the_asked_sizes(deepscaler):
    sets = {
        name: [r["question"] for r in rows_of(deepscaler / "out" / f"{name}.jsonl")]
        for name in ("test", "train_15", "train_30")
    }
    assert [len(set(s)) for s in sets.values()] == [10, 15, 30]
    assert set(sets["train_15"]) < set(sets["train_30"]) and not set(sets["test"]) & set(
        sets["train_30"]
    )


def test_what_is_written_can_be_trained_on(deepscaler):
    loaded = sources.load(deepscaler / "out" / "train_15.jsonl", config.DataConfig())
    assert len(loaded.questions) == 15 and all(
        q.meta["source"] == "deepscaler" for q in loaded.questions
    )


def test_the_card_has_exclusions_lengths_types_and_overlaps(deepscaler):
    card = json.loads((deepscaler / "out" / "card.json").read_text())
    assert card["left_out"] == {
        "train": {
            "duplicate": 1,
            "duplicate with another answer": 1,
            "no question": 1,
            "no answer": 1,
        }
    }
    assert (
        card["unit"] == "tokens"
        and card["sets"]["test"]["questions"] == 10
        and card["in_test_and_train"] == 0
    )
    assert (
        card["sets"]["train_30"]["answer_types"] == {"integer": 30}
        and card["sets"]["train_30"]["lengths"]["max"] > 5
    )
    assert card["overlaps"] == {"train": {"aime24": {"questions": 1, "benchmark_questions": 1}}}
    (row,) = rows_of(deepscaler / "out" / "overlaps.jsonl")
    assert row["benchmark"] == "aime24" and row["words"] == "how many are 5 and 5"
    page = (deepscaler / "out" / "card.md").read_text()
    assert (
        "| train | aime24 | 1 | 1 |" in page
        and "1 duplicate with another answer" in page
        and "| train_30 | 30 |" in page
    )


def test_overlaps_can_be_dropped(deepscaler, tmp_path):
    argv = [
        "deepscaler",
        f"--raw={deepscaler / 'deepscaler.json'}",
        f"--out={tmp_path}",
        "--test=10",
        "--train=49",
        "--overlaps=drop",
    ]
    prepare.run([*argv, f"--benchmarks=aime24={deepscaler / 'bench.jsonl'}"])
    texts = {
        r["question"] for name in ("test", "train_49") for r in rows_of(tmp_path / f"{name}.jsonl")
    }
    assert len(texts) == 59 and "How many are 5 and 5?" not in texts
    assert (
        json.loads((tmp_path / "card.json").read_text())["left_out"]["train"][
            "overlap with a benchmark"
        ]
        == 1
    )


def test_the_draw_depends_on_the_seed_and_not_on_the_order(deepscaler, tmp_path):
    backwards = fixtures.jsonl(tmp_path / "raw.jsonl", list(reversed(deepscaler_rows()[:60])))
    drawn = {}
    for name, raw, seed in (
        ("a", deepscaler / "deepscaler.json", 42),
        ("b", backwards, 42),
        ("c", backwards, 43),
    ):
        prepare.run(
            [
                "deepscaler",
                f"--raw={raw}",
                f"--out={tmp_path / name}",
                f"--seed={seed}",
                "--test=10",
                "--train=15",
            ]
        )
        drawn[name] = (tmp_path / name / "test.jsonl").read_text()
    assert drawn["a"] == drawn["b"] != drawn["c"]
    # Held fast: a change of this draw would be another training set of the same name.
    assert [r["answer"] for r in rows_of(tmp_path / "a" / "test.jsonl")][:4] == [
        "16",
        "28",
        "62",
        "48",
    ]


def test_deepmath_is_hard_and_balanced(tmp_path):
    fixtures.parquet(tmp_path / "raw" / "data" / "train-00000-of-00001.parquet", deepmath_rows())
    prepare.run(
        [
            "deepmath",
            f"--raw={tmp_path / 'raw'}",
            f"--out={tmp_path / 'out'}",
            "--test=40",
            "--train=100,200",
        ]
    )
    for name, size in (("test", 40), ("train_100", 100), ("train_200", 200)):
        rows = rows_of(tmp_path / "out" / f"{name}.jsonl")
        types = Counter(r["answer_type"] for r in rows)
        assert len(rows) == size and all(
            r["difficulty"] >= 7 and r["topic"] == "Algebra" and "r1_solution_1" not in r
            for r in rows
        )
        assert types["yes_no"] == size // 20
        if name != "train_200":  # there are enough of the three others for as many of each
            assert (
                max(types.values()) - min(types[t] for t in ("integer", "expression", "number"))
                <= 1
            )
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (
        card["left_out"]["train"] == {"difficulty under 7": 66}
        and card["unit"] == "words"
        and card["overlaps"] == {}
    )
    assert (
        "too few"
        in problems(
            "deepmath",
            f"--raw={tmp_path / 'raw'}",
            "--out",
            tmp_path / "o",
            "--test=0",
            "--train=600",
        )[0]
    )


def test_quotas_by_hand():
    rows = [
        recipes.Row(f"{kind}{i}", "q", "a", kind, {})
        for kind, n in (("yes_no", 50), ("integer", 50), ("list", 10))
        for i in range(n)
    ]
    assert recipes._quotas(rows, 40) == {"yes_no": 2, "list": 10, "integer": 28}
    assert recipes._quotas(rows, 20) == {"yes_no": 1, "list": 10, "integer": 9}
    assert recipes._quotas(rows, 10) == {"yes_no": 0, "list": 5, "integer": 5}
    with pytest.raises(ConfigError, match="at most 5% yes and no"):
        recipes.draw(rows, [100], True, "s")
    assert [len(s) for s in recipes.draw(rows, [100, 10], False, "s")] == [100, 10]


def test_gsm8k_keeps_its_splits_and_gets_plain_answers(tmp_path):
    for kind in ("hub", "tfds"):
        raw = (
            fixtures.gsm8k(tmp_path / "hub")
            if kind == "hub"
            else fixtures.tfds_folder(
                tmp_path / "tfds",
                {
                    "train": fixtures.gsm8k_rows([("What is 1 + 1?", "2")]),
                    "test": fixtures.gsm8k_rows(),
                },
            )
        )
        prepare.run(["gsm8k", f"--raw={raw}", f"--out={tmp_path / kind / 'out'}"])
        assert [r["answer"] for r in rows_of(tmp_path / kind / "out" / "train.jsonl")] == ["2"]
        answers = {r["answer"] for r in rows_of(tmp_path / kind / "out" / "test.jsonl")}
        assert answers - {"1234"} == {a for _, a in fixtures.SUMS}


def test_math_reads_a_file_per_question_and_its_boxes(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            path = tmp_path / "MATH" / split / "algebra" / f"{i}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            solution = (
                "no box" if split == "train" and i == 2 else rf"so \boxed{{\frac{{{i}}}{{7}}}}"
            )
            row = {
                "problem": f"A {split} question {i}",
                "level": "Level 1",
                "type": "Algebra",
                "solution": solution,
            }
            path.write_text(json.dumps(row))
    prepare.run(["math", f"--raw={tmp_path / 'MATH'}", f"--out={tmp_path / 'out'}"])
    train = rows_of(tmp_path / "out" / "train.jsonl")
    assert [(r["answer"], r["level"], r["type"]) for r in train] == [
        (rf"\frac{{{i}}}{{7}}", "Level 1", "Algebra") for i in (0, 1)
    ]
    assert len(rows_of(tmp_path / "out" / "test.jsonl")) == 2
    assert json.loads((tmp_path / "out" / "card.json").read_text())["left_out"] == {
        "train": {"no answer": 1},
        "test": {},
    }


def test_math_s_other_boxes_are_read():
    for solution, answer in (
        (r"so \fbox{3}", "3"),
        (r"$\boxed 7$.", "7"),
        (r"\boxed{1} or \boxed{2}", "2"),
        ("none", None),
        (r"\boxed", None),
    ):
        row = recipes.RECIPES["math"].row({"problem": "How many?", "solution": solution})
        assert row == "no answer" if answer is None else row.answer == answer


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("Yes", "yes_no"),
        (r"\text{no}", "yes_no"),
        ("42", "integer"),
        ("-7.0", "integer"),
        (r"\frac{1}{3}", "number"),
        ("0.5", "number"),
        ("C", "choice"),
        ("(B)", "choice"),
        ("(1, 2)", "list"),
        (r"[0, \infty)", "list"),
        (r"\{1, 2\}", "list"),
        ("1, 2", "list"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "list"),
        (r"(0,1) \cup (2,3)", "list"),
        (r"\sqrt{2}", "expression"),
        ("x^2 + 1", "expression"),
        (r"\infty", "expression"),
        ("Monday", "text"),
        (r"5\text{ cm}", "text"),
    ],
)
def test_answer_types(answer, kind):
    assert recipes.answer_type(answer) == kind


def test_problems_are_reported(tmp_path, deepscaler):
    lines = problems(
        "deepscalr",
        "--out",
        deepscaler / "out",
        "--seed=x",
        "--train=0",
        "--overlaps=drop",
        "--config.optim.lr=1",
    )
    expected = [
        "no settings here",
        "deepscalr: expected one of",
        "--seed=x",
        "--train=0",
        "--overlaps=drop needs",
        "not empty",
    ]
    assert len(lines) == 6 and all(word in line for word, line in zip(expected, lines, strict=True))
    assert "--out: required" in problems("gsm8k")[0]
    assert (
        "no such file" in problems("gsm8k", "--raw", tmp_path / "none", "--out", tmp_path / "o")[0]
    )
    raw = ("--raw", deepscaler / "deepscaler.json", "--out", tmp_path / "o")
    (line,) = problems("deepscaler", *raw)
    assert "too few for sets of 500, 5000, 5000" in line
    assert line.endswith("(--test=500 --train=5000,10000: lower them)")
    assert "--benchmarks: x" in problems("deepscaler", *raw, "--benchmarks=x=1,x=2")[0]
    assert not (tmp_path / "o").exists()


def test_the_command_and_its_exit_code(tmp_path):
    command = [sys.executable, "-m", "p2o_jax.prepare"]
    raw = fixtures.gsm8k(tmp_path / "raw")
    subprocess.run(
        [*command, "gsm8k", "--raw", str(raw), "--out", str(tmp_path / "out")], check=True, cwd=ROOT
    )
    assert (tmp_path / "out" / "card.md").read_text().startswith("# GSM8K\n")
    wrong = subprocess.run(
        [*command, "gsm9k", "--out", str(tmp_path / "x")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (
        wrong.returncode == 2
        and wrong.stderr.startswith("error: gsm9k: expected one of ")
        and wrong.stderr.count("\n") == 1
    )


def test_the_commands_do_not_import_jax():
    program = "import sys; from p2o_jax import evaluate, prepare; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
