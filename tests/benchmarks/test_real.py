"""The suite on a real model: its settings are sound, and the table is made of rows alone."""

import json
from pathlib import Path

import pytest

from benchmarks.science import real_arms, real_report, tasks
from p2o_jax import config
from p2o_jax.config import ConfigError, loading, rules
from tests.toy_runs import ROOT


def test_settings_of_all_arms_are_valid_and_differ():
    run = [arm for arm in real_arms.ARMS if not arm.supervised]
    assert len({f"{arm.settings} {arm.task}" for arm in run}) == len(run)
    for arm in run:
        settings = {**tasks.TASKS[arm.task].settings, **arm.settings}
        values = loading.load_config_dict(
            str(ROOT / "examples" / "laptop" / "config.py"),
            [("model.path", "m"), ("data.path", "d"), ("arms", "()"), *settings.items()],
        )
        cfg = config.resolve(loading.from_config_dict(values))
        assert rules.problems(cfg, 1) == [], arm.name
        assert cfg.train.max_generated_tokens == real_arms.BUDGET


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_questions_of_a_task(tmp_path):
    """Answers in the task's form; held-out questions in other words; and other families."""
    written = tasks.write(tasks.TASKS["phrase"], tmp_path)
    sets = dict(part.split("=") for part in written["data.eval_path"].split(","))
    assert list(sets) == ["heldout", "families", "wording"]
    held_out, families, wording = map(lines_of, sets.values())
    train = lines_of(written["data.path"])
    assert (len(train), len(held_out), len(families)) == (64, 48, 36)
    assert not {row["family"] for row in train} & {row["family"] for row in families}
    assert [row["answer"] for row in wording] == [row["answer"] for row in held_out]
    assert not {row["question"] for row in wording} & {row["question"] for row in held_out}
    pair = {"question": "What is the past tense of go?", "answer": r"The answer is went\.?"}
    assert any(row.items() >= pair.items() for row in families)
    assert tasks.reworded("What is the capital of Peru?") == "Name the capital city of Peru."
    *_, template = lines_of(written["gepa.seed_templates"])
    assert template["template"].startswith("Q: What is the plural of cat?\nA: The answer is cats.")
    assert "gepa.seed_templates" not in tasks.write(tasks.TASKS["boxed"], tmp_path / "other")


def row(arm, seed, accuracy):
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": accuracy,
        "curve": [[0, 0.0], [12_000, 0.0], [24_000, accuracy]],
        "generated_tokens": 24_000.0 + seed,
        "seconds": 60.0,
        "frac_right_masked": 0.1 if arm == "mask" else None,
        "peak_gib": 4.0 + seed,
    }


def test_the_table_by_hand(tmp_path):
    """The mean over the budget is a quarter of the last accuracy; two seeds differ by .2 and .1."""
    rows = [row("p2o", 1, 0.4), row("grpo", 0, 0.0), row("p2o", 0, 0.8), row("grpo", 1, 0.0)]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{real_report.BEGIN}\nold\n{real_report.END}\nafter\n")
    real_report.write([*rows, row("mask", 0, 0.0)], page)
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after") and "old" not in lines
    table = [line.split(" | ") for line in lines if line.startswith("| ")][2:]
    assert [cells[1:4] for cells in table] == [
        ["0.000, 0.000", "0.000", ""],
        ["0.800, 0.400", "0.150", "+0.150 [-0.485, +0.785]"],
        ["0.000", "0.000", ""],
    ]
    assert table[1][5:] == ["24,000", "60", "5.0 GiB |"] and table[2][4] == "10.0%"


def test_the_tables_of_tasks_and_of_what_else_changes_by_hand(tmp_path):
    probed = {
        "probe": "phrase",
        "plain": {"sampled": {"mean": 0.0, "low": 0.0, "high": 0.07}},
        "best": {"sampled": {"mean": 0.229, "low": 0.15, "high": 0.31}},
        "verdict": "P²O can help: more of it",
    }
    measured = {
        "other_sets": {"heldout": [0, 0.8], "families": [0, 0.25], "wording": [0.0, 0.5]},
        "neutral_nll": [3.0, 3.125],
    }
    runs = [row("grpo-phrase", 0, 0.0), row("p2o-phrase", 0, 0.4) | measured]
    page = tmp_path / "page.md"
    page.write_text(f"{real_report.BEGIN}\n{real_report.END}\n")
    real_report.write([row("grpo", 0, 0.0), probed, *runs], page)
    by_arm, by_task, elsewhere = page.read_text().split("\n\n")[1:-1]
    assert by_arm.splitlines()[2].startswith("| GRPO | 0.000 | 0.000 |")
    assert by_task.splitlines()[2] == (
        "| `The answer is cats.` | 0.0% [0.0%, 7.0%] | 22.9% [15.0%, 31.0%] | P²O can help | 0.000"
        " | 0.400 |  |"
    )
    assert elsewhere.splitlines()[2] == (
        "| P²O, recommended, `The answer is cats.` | 0 | 0.000 → 0.800 | 0.000 → 0.250"
        " | 0.000 → 0.500 | 3.000 → 3.125 |"
    )


def test_a_page_without_markers_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(ConfigError, match=r"page.md: no lines"):
        real_report.write([], tmp_path / "page.md")


def test_other_commands_sample_and_learn_as_the_example_does():
    assert tasks.like_training(tasks.SAMPLING) == {
        "reward.kind": "exact",
        "rollout.max_new_tokens": "16",
        "rollout.temperature": "1.0",
        "rollout.prompt_buckets": "(64, 192)",
        "data.prompt_template": "{question}",
        "data.max_prompt_tokens": "96",
    }
    assert float(tasks.like_training(tasks.LEARNING)["optim.lr"]) == 5e-5
