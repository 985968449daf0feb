"""Questions as a report shows them: by their text, without the prompt that all of them share."""

import dataclasses
import json

import pytest

from p2o_jax.config import Config
from p2o_jax.data.questions import Questions
from p2o_jax.p2o import question_history
from p2o_jax.report import run as report_run
from p2o_jax.report.prompt_text import SharedText, shared_text
from p2o_jax.state import RunState
from p2o_jax.tracking import recorder
from p2o_jax.types import SearchResult
from tests.factories import make_question, make_rollout

TEMPLATE = "Answer in a box.\nQuestion: {question}\nThink first."
AROUND = SharedText("Answer in a box.\nQuestion: ", "\nThink first.")


def asked(*questions):
    return [TEMPLATE.replace("{question}", q) for q in questions]


def test_the_prompt_template_is_no_part_of_a_question():
    texts = asked("1 + 1?", "Why?")
    assert shared_text(texts, TEMPLATE) == AROUND
    assert [AROUND.without(text) for text in texts] == ["1 + 1?", "Why?"]
    assert shared_text([], TEMPLATE) == AROUND


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (
            [f"Spell this word backward (example: sun -> nus): {w}" for w in ("one", "on", "old")],
            SharedText("Spell this word backward (example: sun -> nus):", ""),
        ),
        (
            [
                f'How many {w}? Let\'s think step by step. Answer after "####".'
                for w in ("apples", "pears in May", "eggs")
            ],
            SharedText("", ' Let\'s think step by step. Answer after "####".'),
        ),
        (
            [f"Solve the problem below.\n\nWhat is 1.{i}?\nGive a number only." for i in range(4)],
            SharedText("Solve the problem below.\n\n", "\nGive a number only."),
        ),
        ([f"What is the exact value of 1.{i} * 7 cm in meters?" for i in range(4)], SharedText()),
        ([f"Find it. {i}" for i in range(4)], SharedText()),
        (["Say only yes or no. Is it?", "Say only yes or no. Was it?"], SharedText()),
        (["the same question of a long text. Is it?"] * 4, SharedText()),
    ],
)
def test_sentences_that_all_questions_share(texts, expected):
    assert shared_text(texts, TEMPLATE) == expected


def test_template_and_task_text_are_both_left_out():
    texts = asked(*(f"Reverse the letters of the word: {w}" for w in ("one", "on", "old")))
    shared = shared_text(texts, TEMPLATE)
    assert shared.before == "Answer in a box.\nQuestion: Reverse the letters of the word:"
    assert [shared.without(text) for text in texts] == ["one", "on", "old"]


def test_a_text_without_the_shared_parts_is_shown_whole():
    assert AROUND.without("1 + 1?") == "1 + 1?"
    assert AROUND.without(*asked("  ")) == asked("  ")[0]


def test_a_report_has_the_text_of_every_hard_question_and_dev_question(tmp_path):
    """Hard questions of an epoch, then the questions of a prompt phase, of which no rollout was
    written down.
    """
    questions = [
        make_question(f"q{i}", text) for i, text in enumerate(asked("1?", "Is it?", "Why?", "a?"))
    ]
    cfg = dataclasses.replace(
        Config(), data=dataclasses.replace(Config().data, prompt_template=TEMPLATE)
    )
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(cfg)))
    record = recorder.Recorder.__new__(recorder.Recorder)
    record.questions = Questions(questions, 4, seed=0)
    rollouts = [make_rollout(q, score=0.0, name=q.id) for q in questions]
    history = question_history.advanced(RunState(None).history, 0, rollouts, ["q0", "q1"], True)
    state = dataclasses.replace(RunState(None), history=history, hard_ids=("q0", "q1"))
    rows = record._question_rows(state)
    assert [row.get("question") for row in rows] == [*asked("1?", "Is it?"), None, None]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = SearchResult(("",), (None,), ("q2",), ("q3",), ((0.0,),), (0,))
    rows = recorder._template_rows(result, 0, record._texts({"q2", "q3"}))
    (tmp_path / "templates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = report_run.read(tmp_path, "run", 10**6)
    assert run["notes"] == []
    assert run["question_texts"] == {"q0": "1?", "q1": "Is it?", "q2": "Why?"}
    assert run["prompt_text"] == AROUND
