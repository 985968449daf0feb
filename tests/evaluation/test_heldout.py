"""Evaluation during training: one set as ever, several with a curve each."""

import numpy as np
import pytest

from p2o_jax import config
from p2o_jax.data.sources import Loaded
from p2o_jax.evaluation.heldout import Evaluation
from p2o_jax.tracking import metric_names
from p2o_jax.types import Completion, Question, Rollout, SamplingParams, Verdict


def questions(prefix, scores, **meta):
    return tuple(
        Question(f"{prefix}{i}", ({"role": "user", "content": prefix},), str(s), "f.jsonl", meta)
        for i, s in enumerate(scores)
    )


class Known:
    """Answers every question with the score that is its reference answer."""

    def __init__(self):
        self.names = []

    def sample(self, weights, asks, sampling, key, phase):
        self.names += [ask.name for ask in asks]
        rollouts = []
        for ask in asks:
            score = float(ask.question.answer)
            completion = Completion(
                np.zeros(int(4 * score) + 1, np.int32), np.zeros(0, np.float32), score > 0
            )
            rollouts.append(
                Rollout(
                    ask,
                    (1,),
                    (1,),
                    completion,
                    "",
                    Verdict(score, 1.0, "correct" if score > 0.5 else "wrong"),
                )
            )
        return rollouts

    def cost(self, rollouts):
        return {"rollouts": len(rollouts)}


def evaluation(*sets, **changes):
    parts = [Loaded(name, qs, 0, tuple(range(len(qs))), name=name) for name, qs in sets]
    return Evaluation(parts, Known(), config.EvalConfig(**changes), SamplingParams(0.0, 8), None)


DEV, AIME = questions("d", (1, 0, 0.5, 0)), questions("a", (1, 1))


def test_one_set_by_hand():
    held_out = evaluation(("dev", DEV))
    values, row, spent = held_out.run(None)
    assert values == {
        "eval/accuracy": 0.375,
        "eval/format": 1.0,
        "eval/mean_tokens": 2.5,
        "eval/frac_truncated": 0.5,
    }
    assert (
        row["accuracy"] == 0.375
        and row["by_family"] == {"f.jsonl": 0.375}
        and row["questions"] == 4
        and "sets" not in row
    )
    assert row["standard_error"] == pytest.approx(np.std([1, 0, 0.5, 0], ddof=1) / 2)
    assert spent["rollouts"] == 4 and held_out.pipeline.names[0] == "eval/d0/0"


def test_several_sets_have_a_curve_each_and_the_first_is_the_dev_set():
    held_out = evaluation(("dev", DEV), ("aime24", AIME), rollouts=2)
    values, row, _ = held_out.run(None)
    assert (
        values["eval/accuracy"] == values["eval/dev/accuracy"] == 0.375
        and values["eval/aime24/accuracy"] == 1.0
    )
    assert (
        row["accuracy"] == 0.375
        and row["sets"]["aime24"]["accuracy"] == 1.0
        and row["sets"]["dev"]["questions"] == 4
    )
    assert all(metric_names.is_known(name) for name in values) and len(values) == 12
    assert (
        len(held_out.pipeline.names) == len(set(held_out.pipeline.names)) == 12
        and len(held_out.questions) == 6
    )


def test_a_question_in_two_sets_is_asked_for_each():
    held_out = evaluation(("dev", DEV), ("again", DEV))
    held_out.run(None)
    assert len(set(held_out.pipeline.names)) == 8


def test_sets_are_cut_one_by_one():
    held_out = evaluation(("dev", DEV), ("aime24", AIME), max_questions=1)
    assert [q.id for q in held_out.questions] == ["d0", "a0"]
    assert (
        evaluation().is_due(0) is False
        and held_out.is_due(0)
        and held_out.is_due(20)
        and not held_out.is_due(10)
    )


def test_known_metric_names():
    assert metric_names.is_known("eval/accuracy") and metric_names.is_known(
        "eval/aime24/mean_tokens"
    )
    assert not any(
        map(
            metric_names.is_known,
            ("eval/aime24/speed", "train/aime24/accuracy", "eval/a/b/accuracy", "nothing"),
        )
    )
