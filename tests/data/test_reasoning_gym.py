"""Sources of reasoning-gym: tasks, sizes, seeds and settings."""

import importlib.util

import pytest

from p2o_jax import config
from p2o_jax.data import benchmarks, sources
from tests import fake_reasoning_gym

CFG = config.DataConfig(prompt_template="Solve: {question}", question_field="problem")


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    folder = fake_reasoning_gym.install(tmp_path_factory.mktemp("library"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


def problems(source):
    with pytest.raises(config.ConfigError) as error:
        sources.load(f"reasoning_gym:{source}", CFG)
    return [p.removeprefix(f"reasoning_gym:{source}: ") for p in error.value.problems]


def test_tasks_take_turns_and_the_seed_is_the_library_s(fake):
    text = "reasoning_gym:sums,hangs?size=5&seed=3&sums.step=10"
    loaded = sources.load(text, CFG)
    assert [q.text for q in loaded.questions] == [
        "Solve: 3 + 10?",
        "Solve: hang 0",
        "Solve: 4 + 10?",
        "Solve: hang 1",
        "Solve: 5 + 10?",
    ]
    assert [q.answer for q in loaded.questions] == ["13", "", "14", "", "15"]
    assert {q.scorer for q in loaded.questions} == {"reasoning_gym"}
    assert [q.meta["family"] for q in loaded.questions][:2] == ["sums", "hangs"]
    assert loaded.notices == [] and loaded.lines == (1, 2, 3, 4, 5)
    first = loaded.questions[0].meta["reasoning_gym"]
    assert first["settings"] == {"size": 3, "seed": 3, "step": 10}


def test_entries_depend_on_no_hash_seed(fake, monkeypatch):
    texts = set()
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        texts.add(sources.load("reasoning_gym:evaluates?size=1", CFG).questions[0].text)
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("sum", "no task sum (did you mean sums?)"),
        ("sums?stap=2", "stap=2: no such setting of sums (did you mean step?)"),
        ("sums?step=x", "step=x: expected int"),
        ("sums?loud=1", "loud=1: expected true or false"),
        ("sums?names=a", "names=a: a setting that is no number, text, true or false cannot be"),
        ("sums?step=0", "sums: AssertionError: step must be positive"),
        ("sums?ratio=10", "sums: RuntimeError: no such entry"),
        ("sums?hangs.step=2", "hangs.step=2: no such setting of sums"),
    ],
)
def test_what_the_library_does_not_have_is_an_error(fake, source, rule):
    (line,) = problems(source)
    assert line.startswith(rule)


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("sums?size=0", "size=0: expected a whole number of 1 or more"),
        ("sums?seed=-1", "seed=-1: expected a whole number of 0 or more"),
        ("sums,sums", "expected different tasks"),
        ("sums?size=2&size=3", "a setting is given twice"),
        ("", "expected different tasks"),
    ],
)
def test_a_wrong_source_is_an_error_before_the_library_is_imported(fake, source, rule):
    (line,) = problems(source)
    assert line.startswith(rule)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert problems("sums") == [
        "needs the reasoning-gym library: pip install 'p2o-jax[reasoning-gym]'"
    ]


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        (
            "reasoning_gym:sums,gcd?size=3&seed=2",
            {"sums-gcd": "reasoning_gym:sums,gcd?size=3&seed=2"},
        ),
        ("a=reasoning_gym:sums,gcd,aime24", {"a": "reasoning_gym:sums,gcd", "aime24": ""}),
        (
            "b.jsonl,reasoning_gym:sums?size=3,gcd.csv",
            {"b": "b.jsonl", "sums": "reasoning_gym:sums?size=3", "gcd": "gcd.csv"},
        ),
        (
            "reasoning_gym:sums,reasoning_gym:gcd,c=hf:x/y",
            {"sums": "reasoning_gym:sums", "gcd": "reasoning_gym:gcd", "c": "hf:x/y"},
        ),
    ],
)
def test_commas_of_tasks_among_those_of_sets(text, sets):
    assert dict(benchmarks.named(text)) == sets
