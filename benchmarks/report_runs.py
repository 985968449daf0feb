"""Synthetic runs of any length for the report, with realistic texts and random numbers."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from p2o_jax.config import Config
from p2o_jax.gepa.search import REJECTIONS, STATS
from p2o_jax.tracking.metric_names import METRICS
from p2o_jax.types import template_id

SENTENCE = (
    "let us write the known terms down and solve for what is left so that both sides agree before"
    " we box it"
)


class Shape(NamedTuple):
    """The size of each part of a run."""

    steps: int
    samples_per_step: int
    steps_per_epoch: int = 40
    questions: int = 1000
    hard_per_epoch: int = 300
    dev: int = 100
    candidates: int = 20
    rejected: int = 60
    response_words: int = 250
    template_words: int = 120


def write(workdir: Path, shape: Shape, seed: int = 0) -> None:
    """Writes the files of a finished run into a new folder."""
    workdir.mkdir(parents=True)
    lot = random.Random(seed)
    epochs = max(shape.steps // shape.steps_per_epoch, 1)
    names = [f"{lot.getrandbits(64):016x}" for _ in range(shape.questions)]
    trees = [_phase(epoch, names, shape, lot) for epoch in range(epochs)]
    _rows(workdir / "metrics.jsonl", _metrics(shape, lot))
    _rows(
        workdir / "evaluations.jsonl",
        (
            _evaluation(step, shape.steps, lot)
            for step in range(0, shape.steps + 1, max(min(20, shape.steps // 8), 1))
        ),
    )
    _rows(workdir / "templates.jsonl", (row for tree in trees for row in tree))
    _rows(
        workdir / "questions.jsonl",
        (row for epoch in range(epochs) for row in _questions(epoch, names, trees[epoch], shape)),
    )
    _rows(workdir / "samples.jsonl", _samples(names, trees, shape, lot))
    config = {
        "preset": "recommended",
        "data": {"path": "synthetic"},
        "model": {"path": "none"},
        "gepa": {"enabled": True},
    }
    for name, value in {
        "config": config,
        "versions": {"python": "3"},
        "result": {"seconds": 1.0},
        "seconds": [1.0],
    }.items():
        (workdir / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    assert set(config) - {"preset"} < set(vars(Config()))


def _rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"tick": 0, **row}) + "\n" for row in rows)


def _text(words: int, lot: random.Random) -> str:
    return " ".join(lot.choices(SENTENCE.split(), k=words))


def _metrics(shape: Shape, lot: random.Random) -> Iterable[dict[str, Any]]:
    every_step = [name for name in METRICS if not name.startswith(("gepa/", "eval/"))]
    for step in range(shape.steps):
        values = {name: lot.random() for name in every_step}
        yield {
            "step": step,
            **values,
            "ledger/generated_tokens": 1000.0 * step,
            "ledger/flops": 1e12 * step,
        }
        if step % shape.steps_per_epoch == shape.steps_per_epoch - 1:
            gepa = {f"gepa/{name}": lot.random() for name in STATS}
            yield {
                "step": step + 1,
                **gepa,
                "gepa/skipped": 0.0,
                "gepa/hard_questions": 300 * lot.random(),
                "ledger/generated_tokens": 1000.0 * step,
            }


def _evaluation(step: int, steps: int, lot: random.Random) -> dict[str, Any]:
    parts = {f"set{i}": {"accuracy": lot.random()} for i in range(6)}
    return {
        "step": step,
        "generated_tokens": 1000 * step,
        "accuracy": step / steps / 2,
        "questions": 500,
        "by_family": {},
        "sets": parts,
    }


def _phase(epoch: int, names: list[str], shape: Shape, lot: random.Random) -> list[dict[str, Any]]:
    dev = lot.sample(names, shape.dev)
    rows: list[dict[str, Any]] = []
    for z in range(shape.candidates):
        text = _text(shape.template_words, lot) if z else ""
        scores = {name: float(lot.random() < 0.04 * z) for name in dev}
        row = {
            "epoch": epoch,
            "candidate": z,
            "text": text,
            "template_id": template_id(text),
            "parent": lot.randrange(z) if z else None,
        }
        rows.append(
            {
                **row,
                "dev_score": sum(scores.values()) / len(dev),
                "cover_rank": z - 1 if 0 < z < 6 else None,
                "dev": scores,
            }
        )
    for i in range(shape.rejected):
        text, outcome = _text(shape.template_words, lot), lot.choice(list(REJECTIONS))
        proposal = {
            "epoch": epoch,
            "iteration": i,
            "parent": lot.randrange(shape.candidates),
            "text": text,
            "outcome": outcome,
        }
        rows.append({**proposal, "before": 1.0, "after": 1.0, "minibatch": lot.sample(dev, 3)})
    return rows


def _questions(
    epoch: int, names: list[str], tree: list[dict[str, Any]], shape: Shape
) -> Iterable[dict[str, Any]]:
    """Questions that become hard in the first epoch, and are then internalised one by one."""
    template = tree[1]["template_id"]
    for i, name in enumerate(names):
        hard = i < shape.hard_per_epoch
        internalised = 1 + i % 9 if hard and 1 + i % 9 <= epoch else None
        solved = 4 if not hard or internalised else 0
        yield {
            "epoch": epoch,
            "question_id": name,
            "hard": hard and not internalised,
            "plain": [solved, 6],
            "templated": [2, 4] if hard and epoch else [0, 0],
            "templates": {template: [2, 4]} if hard and epoch else {},
            "first_hard_epoch": 0 if hard else None,
            "internalised_epoch": internalised,
            "relapsed_epoch": None,
        }


def _samples(
    names: list[str], trees: list[list[dict[str, Any]]], shape: Shape, lot: random.Random
) -> Iterable[dict[str, Any]]:
    asked = {name: f"question {name}: {_text(30, lot)}?" for name in names}
    for step in range(shape.steps):
        tree = trees[min(step // shape.steps_per_epoch, len(trees) - 1)]
        for i in range(shape.samples_per_step):
            name, correct = lot.choice(names), lot.random() < 0.5
            yield {
                "step": step,
                "question_id": name,
                "question": asked[name],
                "answer": "42",
                "template": tree[1]["text"] if i % 2 else "",
                "response": _text(shape.response_words, lot) + " \\boxed{42}",
                "score": float(correct),
                "status": "correct" if correct else "wrong",
                "tokens": shape.response_words,
                "stopped": True,
            }
