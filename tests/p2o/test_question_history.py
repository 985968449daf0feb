"""Questions across epochs, by hand."""

import json
from dataclasses import replace

import numpy as np

from p2o_jax.p2o import question_history
from p2o_jax.state import Assignment, Attempts, History, LearningStatus, RunState
from p2o_jax.types import Completion, Question, Rollout, TemplatedQuestion, Verdict, template_id


def rollouts(name, plain="", templated="", template="T"):
    """A group of a question: one letter a rollout, 1 where it succeeded."""
    question = Question(name, ({"role": "user", "content": name},), "x")
    completion = Completion(np.zeros(1, np.int32), np.zeros(1, np.float32), True)
    asked = [
        (z, float(mark)) for z, marks in (("", plain), (template, templated)) for mark in marks
    ]
    return [
        Rollout(
            TemplatedQuestion(question, z, ""),
            (1,),
            (1,),
            completion,
            "",
            Verdict(s, 1.0, "correct" if s else "wrong"),
        )
        for z, s in asked
    ]


def run(*epochs):
    """The history after each epoch of (rollouts, hard ids)."""
    state, states = History(), []
    for epoch, (rolled, hard) in enumerate(epochs):
        state = question_history.advanced(state, epoch, rolled, hard, epoch_ends=True)
        states.append(state)
    return states


def test_a_question_becomes_hard_is_internalised_falls_back_and_is_internalised_again():
    states = run(
        (rollouts("q", "000"), {"q"}),
        (rollouts("q", "00", "1"), {"q"}),  # solved with a crutch only
        (rollouts("q", "01", "1"), {"q"}),  # plainly, if once: near-hard
        (rollouts("q", "00"), {"q"}),
        (rollouts("q", "111"), set()),
    )
    assert [s.fates["q"] for s in states] == [
        LearningStatus(0),
        LearningStatus(0),
        LearningStatus(0, 2),
        LearningStatus(0, 2, 3),
        LearningStatus(0, 4, 3),
    ]
    names = ("num_ever", "num_internalised", "num_newly_internalised", "num_relapsed")
    assert [tuple(question_history.stats(s)[n] for n in names) for s in states] == [
        (1, 0, 0, 0),
        (1, 0, 0, 0),
        (1, 1, 1, 0),
        (1, 0, 0, 1),
        (1, 1, 1, 0),
    ]
    assert set(question_history.stats(states[0])) == set(question_history.STATS)


def test_a_success_in_the_epoch_that_first_found_it_hard_is_no_internalisation():
    assert run((rollouts("q", "010"), {"q"}))[0].fates == {"q": LearningStatus(0)}


def test_easy_questions_have_no_fate_and_no_plain_rollout_says_nothing():
    states = run(
        (rollouts("q", "00") + rollouts("easy", "11"), {"q"}),
        (rollouts("q", "1"), set()),
        (rollouts("q", "", "000"), {"q"}),
    )
    assert states[-1].fates == {"q": LearningStatus(0, 1)}


def test_steps_of_an_epoch_add_up_and_the_next_epoch_starts_anew():
    state = question_history.advanced(History(), 3, rollouts("a", "01", "1", "A"), (), False)
    state = question_history.advanced(
        state, 3, rollouts("a", "1", "0", " A ") + rollouts("b", "0"), {"b"}, True
    )
    assert state.attempts == {
        "a": Attempts({"": (2, 3), template_id("A"): (1, 2)}),
        "b": Attempts({"": (0, 1)}),
    }
    assert question_history.rows(state, {"b"}) == [
        {
            "epoch": 3,
            "question_id": "a",
            "hard": False,
            "plain": [2, 3],
            "templated": [1, 2],
            "templates": {template_id("A"): [1, 2]},
            "first_hard_epoch": None,
            "internalised_epoch": None,
            "relapsed_epoch": None,
        },
        {
            "epoch": 3,
            "question_id": "b",
            "hard": True,
            "plain": [0, 1],
            "templated": [0, 0],
            "templates": {},
            "first_hard_epoch": 3,
            "internalised_epoch": None,
            "relapsed_epoch": None,
        },
    ]
    later = question_history.advanced(state, 4, rollouts("c", "0"), (), False)
    assert later.attempts == {"c": Attempts({"": (0, 1)})}
    assert later.tokens == {"a": 1.0, "b": 1.0, "c": 1.0}
    run_state = RunState(None, history=state)
    assert RunState.from_json(None, json.loads(json.dumps(run_state.to_json()))) == run_state


def test_lengths_are_those_of_the_last_step_a_question_was_asked_in():
    def of(name, *lengths):
        rolled = rollouts(name, "0" * len(lengths))
        return [
            replace(r, completion=Completion(np.zeros(n, np.int32), np.zeros(n), True))
            for r, n in zip(rolled, lengths, strict=True)
        ]

    state = question_history.advanced(History(), 0, of("a", 3, 5) + of("b", 10), (), False)
    state = question_history.advanced(state, 1, of("a", 8, 9), (), True)
    assert state.tokens == {"a": 8.5, "b": 10.0}


def test_a_template_s_text_is_written_once_however_many_questions_share_it():
    text = "Think of " + "x" * 1000
    state = RunState(None, assignment=Assignment({f"q{i}": (text, "", text) for i in range(50)}))
    written = json.dumps(state.to_json())
    assert written.count(text) == 1 and RunState.from_json(None, json.loads(written)) == state
    assert (
        template_id(f" {text} ") == template_id(text) != template_id("") == template_id("  ") == ""
    )
