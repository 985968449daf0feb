"""The example on a real model: its questions, templates and settings, and what it runs."""

import json
import re

import pytest

from examples.laptop import __main__ as laptop
from examples.laptop import questions
from p2o_jax import config
from p2o_jax.config import ConfigError, loading, rules
from p2o_jax.data import seed_templates
from tests.toy_runs import ROOT

GOLDEN = ROOT / "tests" / "golden" / "hf" / "llama3_rope"


def test_questions_are_64_and_48_others_and_always_the_same(tmp_path):
    train, held_out = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in questions.write(tmp_path / "new")
    )
    asked = [row["question"] for row in train + held_out]
    assert (len(train), len(held_out), len(set(asked))) == (64, 48, 112)
    assert train[0] == {
        "question": "What is the capital of Turkey?",
        "answer": "Ankara",
        "family": "capital",
    }
    assert {row["family"] for row in held_out} == {"plural", "opposite", "capital"}


def test_templates_hold_no_question_of_the_sets():
    """A worked example of a training question would teach its answer, not the form."""
    text = (ROOT / "examples" / "laptop" / "templates.txt").read_text()
    examples = re.findall(r"What is the \w+ of (\w+)\?", text)
    assert examples == ["cat", "big", "Spain"]
    everything = "\n".join(row["question"] for part in questions.rows() for row in part)
    assert not [word for word in examples if re.search(rf"\b{word}\?", everything)]


def test_both_arms_keep_the_rules_and_every_seed_template_can_be_tried():
    values = loading.load_config_dict(
        str(ROOT / "examples" / "laptop" / "config.py"),
        [("model.path", "m"), ("data.path", "d"), ("data.eval_path", "e")],
    )
    arms = {name: config.resolve(arm) for name, arm in loading.arms(values).items()}
    assert list(arms) == ["grpo", "p2o"]
    assert [rules.problems(arm, 1) for arm in arms.values()] == [[], []]
    gepa = arms["p2o"].gepa
    seeds = seed_templates.read(gepa.seed_templates)
    assert (1 + len(seeds)) * gepa.dev_size <= gepa.max_metric_calls


def test_the_command_trains_both_arms_on_the_model_and_writes_the_report(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(laptop.main, "main", calls.append)
    monkeypatch.setattr(laptop.report, "main", calls.append)
    laptop.run(
        [
            f"--out={tmp_path / 'out'}",
            f"--data={tmp_path / 'data'}",
            f"--model={GOLDEN}",
            "--config.train.seed=3",
        ]
    )
    (trained, *report) = calls
    assert f"--workdir={tmp_path / 'out'}" in trained and "--config.train.seed=3" in trained
    assert f"--config.model.path={GOLDEN}" in trained
    assert report == [[str(tmp_path / "out"), f"--out={tmp_path / 'out' / 'report.html'}"]]


def test_what_is_wrong_with_the_second_arm_s_prompts_is_reported_before_the_first_is_run(tmp_path):
    with pytest.raises(ConfigError) as e:
        laptop.run(
            [
                f"--out={tmp_path / 'out'}",
                f"--data={tmp_path / 'data'}",
                f"--model={GOLDEN}",
                "--config.gepa.reflect_prompt_tokens=20",
                "--config.optim.micro_rows=8",
            ]
        )
    prompt, template = e.value.problems
    assert prompt.startswith("config.arms, p2o: config.gepa.reflect_prompt_tokens=20 is less than")
    assert "templates.txt:7: a template of 118 tokens" in template
    assert not (tmp_path / "out" / "grpo").exists()


@pytest.mark.slow
def test_the_example_on_a_tiny_model_and_again(tmp_path, capsys):
    flags = [
        f"--out={tmp_path / 'out'}",
        f"--data={tmp_path / 'data'}",
        f"--model={GOLDEN}",
        "--config.train.max_generated_tokens=3000",
        "--config.gepa.max_template_tokens=128",
        "--config.rollout.prompt_buckets=(128, 512)",
        "--config.data.max_prompt_tokens=128",
        "--config.optim.row_tokens=256",
        "--config.optim.micro_rows=8",
    ]
    laptop.run(flags)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {"base", "grpo", "p2o", "tokens_grpo", "tokens_p2o", "seconds"} <= result.keys()
    assert min(result["tokens_grpo"], result["tokens_p2o"]) >= 3000
    for name in ("comparison.png", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    capsys.readouterr()
    laptop.run(flags)
    assert "is finished" in capsys.readouterr().err
    again = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [again[name] for name in result if not name.startswith("seconds")] == [
        result[name] for name in result if not name.startswith("seconds")
    ]
