"""The command of supervised training, on a tiny model: it learns, resumes exactly, and refuses bad
rows and directories of other commands.
"""

import json
import os
from pathlib import Path

import pytest

from p2o_jax.report import run as report_run
from tests import toy_runs

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden/hf/qwen3_tied"
SETTINGS = {
    "model.path": GOLDEN,
    "data.max_prompt_tokens": 60,
    "rollout.max_new_tokens": 40,
    "rollout.prompt_buckets": "(60,)",
    "sft.examples": 8,
    "optim.lr": 3e-3,
    "optim.schedule": "constant",  # which epochs may change in a resumed run
    "optim.warmup_frac": 0.0,
    "optim.micro_rows": 2,
    "train.epochs": 2,
    "eval.every_steps": 2,
    "checkpoint.every_steps": 2,
}
STEPS_PER_EPOCH = 2


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sft(workdir: Path, data: Path, module: str = "p2o_jax.sft", **changes) -> tuple:
    """A start of the command on this data, or of another one with the same arguments."""
    shared = {
        "data.path": data,
        "data.eval_path": data,
        "train.compile_cache": os.environ["JAX_COMPILATION_CACHE_DIR"],
    }
    settings = {**SETTINGS, **shared, **{k.replace("__", "."): v for k, v in changes.items()}}
    return module, toy_runs.flags("configs/sft.py", workdir, settings)


def rows_of(workdir: Path) -> list[dict]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in row.items() if not key.startswith(("time/", "perf/"))}
        for row in rows
    ]


def bits(workdir: Path, tick: int) -> dict:
    return json.loads((workdir / f"checkpoints/{tick}/host/metadata").read_text())["bits"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of two epochs, one that is resumed after the first, and what other starts say."""
    folder = tmp_path_factory.mktemp("sft")
    questions = [{"question": f"{i}+1?", "answer": f"\\boxed{{{i + 1}}}"} for i in range(8)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"{i}?"},
                {"role": "assistant", "content": f"\\boxed{{{i}}}"},
            ]
        }
        for i in range(8)
    ]
    data = write(folder / "rows.jsonl", [*questions, *chats])
    whole, resumed = folder / "whole", folder / "resumed"
    *succeed, by_main, by_examples = toy_runs.starts(
        sft(whole, data),
        sft(resumed, data, train__epochs=1),
        sft(resumed, data),
        sft(whole, data, "p2o_jax.main"),
        sft(whole, data, sft__examples=4),
    )
    assert succeed == [[]] * 3
    return whole, resumed, (by_main, by_examples)


def test_the_loss_falls_and_the_run_leaves_its_records(runs):
    whole, _, _ = runs
    losses = [row["eval/nll"] for row in rows_of(whole) if "eval/nll" in row]
    assert len(losses) == 3 and losses[-1] < 0.7 * losses[0]
    assert [row["step"] for row in rows_of(whole) if "train/loss" in row] == [0, 1, 2, 3]
    result = json.loads((whole / "result.json").read_text())
    assert result["steps"] == 4 and (result["nll_before"], result["nll"]) == (losses[0], losses[-1])
    best = json.loads((whole / "checkpoints/best.json").read_text())
    assert best["step"] == 4 and 0 < best["accuracy"] < 1


def test_a_resumed_run_is_bit_for_bit_the_run_that_was_not_left(runs):
    whole, resumed, _ = runs
    assert rows_of(whole) == rows_of(resumed)
    assert bits(whole, 4) == bits(resumed, 4) != bits(whole, 2)


def test_a_directory_belongs_to_one_command_and_one_size_of_batch(runs):
    _, _, (by_main, by_examples) = runs
    assert any("holds a run of p2o_jax.sft, and this is p2o_jax.main" in line for line in by_main)
    assert any("config.sft.examples=4" in line for line in by_examples)


def test_the_report_shows_the_run(runs):
    page = report_run.read(runs[0], "whole", 1000)
    assert page["summary"]["method"] == "Supervised training" and page["notes"] == []
    assert page["curves"]["evaluation"]["values"]["eval/nll"][-1] is not None


def test_everything_wrong_is_reported_before_anything_is_written(tmp_path):
    long_prompt, long_response = {"question": "x " * 80, "answer": "1"}, {
        "question": "1?", "answer": "y " * 60,
    }  # fmt: skip
    data = write(tmp_path / "rows.jsonl", [long_prompt, long_response])
    bad = write(tmp_path / "bad.jsonl", [{"messages": [{"role": "user", "content": "?"}]}])
    lengths, chats, world = toy_runs.starts(
        sft(tmp_path / "run", data),
        sft(tmp_path / "run", bad, data__eval_path="", optim__lr=-1),
        sft(tmp_path / "run", data, data__path="world"),
    )
    assert any("rows.jsonl:1: a prompt of" in line for line in lengths)
    assert any("rows.jsonl:2: a response of" in line for line in lengths)
    assert any("bad.jsonl:1: messages: the last message must be" in line for line in chats)
    assert any("config.optim.lr" in line for line in chats)
    assert any("rows with responses" in line for line in world)
    assert not (tmp_path / "run/config.json").exists()
