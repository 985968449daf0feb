"""The control of the suite on a real model: the same tokens are sampled under the same templates at
once, and supervised training on the right answers, without templates, takes the place of
reinforcement learning.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import Usage, call
from benchmarks.science import neutral_text, tasks
from benchmarks.science.real_arms import BUDGET

RESPONSE_TOKENS = 13.5  # the base model's mean
EPOCHS = 12
LEARNING = {  # besides tasks.LEARNING
    "sft.examples": "16",
    "rollout.max_new_tokens": "24",  # a text may have more tokens than were sampled for it
    "train.epochs": str(EPOCHS),
    "checkpoint.every_steps": "1000",
}


def make(task: tasks.Task, seed: int, model: Path, folder: Path) -> dict[str, Any]:
    """Returns the figures of a run.

    Args:
        task: the task.
        seed: of sampling and of the order of examples.
        model: the base model.
        folder: where the task's files go.

    Raises:
        ConfigError: a command failed; with the end of its output.
    """
    begin = time.monotonic()
    sampled_as = tasks.like_training(tasks.SAMPLING)
    settings = {**sampled_as, **tasks.write(task, folder), "train.seed": str(seed)}
    templates = settings.pop("gepa.seed_templates", "examples/laptop/templates.txt")
    train, sets = settings.pop("data.path"), settings.pop("data.eval_path")
    with tempfile.TemporaryDirectory(prefix="supervised-") as name:
        own = Path(name)
        sampled, sampling = sample(model, train, templates, settings, own / "samples.jsonl")
        right = [row for row in sampled if row["verdict"]["status"] == "correct"]
        trained, learning = learn(model, right, Path(train), settings, own)
        seconds = time.monotonic() - begin
        after = {
            name: accuracy(trained, path, settings, own / f"{name}.jsonl")
            for name, path in (part.split("=") for part in sets.split(","))
        }
        nll = [neutral_text.nll(path) for path in (model, trained)]
    tokens = float(sum(row["tokens"] for row in sampled))
    return {
        "accuracy": after["heldout"],
        "curve": [],
        "other_sets": {name: [None, value] for name, value in after.items()},
        "neutral_nll": [round(value, 4) for value in nll],
        "right": len(right),
        "questions_right": len({row["index"] for row in right}),
        "generated_tokens": tokens,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(sampling.cpu_seconds + learning.cpu_seconds, 1),
        "peak_gib": max(sampling.peak_gib, learning.peak_gib),
        "frac_right_masked": None,
    }


def sample(
    model: Path, questions: str, templates: str, settings: Mapping[str, str], out: Path
) -> tuple[list[dict[str, Any]], Usage]:
    """Returns responses to the questions, plainly and under each template, about BUDGET tokens, and
    what that took.

    Args:
        model: the base model.
        questions: file of questions.
        templates: file of templates.
        settings: of prompts, responses and rewards.
        out: file for the responses.
    """
    from p2o_jax.data import seed_templates

    asked = len(_lines(Path(questions))) * (1 + len(seed_templates.read(templates)))
    per_prompt = max(round(BUDGET / RESPONSE_TOKENS / asked), 1)
    usage = call(
        "p2o_jax.generate",
        *(f"--model={model}", f"--prompts={questions}", f"--templates={templates}"),
        *(f"--n={per_prompt}", f"--out={out}", *_overrides(settings)),
    )
    return _lines(out), usage


def learn(
    model: Path,
    right: Sequence[Mapping[str, Any]],
    questions: Path,
    settings: Mapping[str, str],
    folder: Path,
) -> tuple[Path, Usage]:
    """Returns the model after supervised training on the right responses, and what that took.

    Args:
        model: the base model.
        right: rows of responses.
        questions: file of their questions.
        settings: of prompts.
        folder: for everything that is written.
    """
    asked, data = _lines(questions), folder / "right.jsonl"
    rows = ({"question": asked[row["index"]]["question"], "answer": row["text"]} for row in right)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prompts = {key: value for key, value in settings.items() if not key.startswith("reward.")}
    learned_as = tasks.like_training(tasks.LEARNING) | LEARNING
    own = {**prompts, **learned_as, "model.path": str(model), "data.path": str(data)}
    run, trained = folder / "run", folder / "model"
    usage = call("p2o_jax.sft", "--config=configs/sft.py", f"--workdir={run}", *_overrides(own))
    call("p2o_jax.export", f"--workdir={run}", f"--out={trained}", "--dtype=float32")
    return trained, usage


def accuracy(model: Path, questions: str, settings: Mapping[str, str], out: Path) -> float:
    """Returns the share of questions that are answered right, greedily and without a template."""
    greedy = (f"--model={model}", f"--prompts={questions}", f"--out={out}", "--temperature=0")
    call("p2o_jax.generate", *greedy, *_overrides(settings))
    rows = _lines(out)
    return sum(row["verdict"]["status"] == "correct" for row in rows) / len(rows)


def _overrides(settings: Mapping[str, str]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in settings.items()]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
