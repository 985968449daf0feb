"""The bandit: priors from dev, evidence from training, exact after a resume."""

import json
import random

import numpy as np
import pytest

from p2o_jax import config
from p2o_jax.config import Config
from p2o_jax.p2o import bandit
from p2o_jax.p2o.assign import assign, best_template, next_assignment
from p2o_jax.state import Assignment, Bandit, RunState
from p2o_jax.types import SearchResult
from tests.factories import make_question, make_rollout

CFG = config.AssignConfig(plain_rollouts=1, bandit=True, bandit_prior=8.0, bandit_discount=0.5)
RESULT = SearchResult(
    templates=("", "A", "B"),
    parents=(None, 0, 0),
    dev_ids=("d0", "d1", "d2", "d3"),
    train_ids=("t0",),
    score_ZN=((0, 0, 0, 0), (1, 1, 0, 0), (0, 0, 1, 0)),
    cover=(1, 2),
)
QUESTIONS = {name: make_question(name, name, "x") for name in ("t0", "d0", "d2", "easy")}
ASSIGNMENT = assign(RESULT, ["t0", "d0", "d2"], 4, CFG, "s")


def rollout(name, template, score):
    return make_rollout(QUESTIONS[name], template, score=score)


def test_dev_scores_are_the_prior_and_dev_questions_get_what_solves_them():
    arms = bandit.start(RESULT, ASSIGNMENT, Bandit(), CFG)
    assert arms == Bandit(
        ("A", "B"), (4.0, 2.0), (4.0, 6.0), {"t0": (0, 1), "d0": (0,), "d2": (1,)}
    )


def test_it_is_off_unless_asked_for():
    off = config.AssignConfig(plain_rollouts=1)
    assert (
        bandit.start(RESULT, ASSIGNMENT, Bandit(), off)
        == bandit.start(RESULT, Assignment(), Bandit(), CFG)
        == Bandit()
    )
    assert bandit.draw(Bandit(), ASSIGNMENT, list(QUESTIONS.values()), off, "s") == ASSIGNMENT
    assert bandit.update(Bandit(), [rollout("t0", "A", 1.0)], CFG) == Bandit()


def test_evidence_by_hand():
    """Half of what was known, and one success and one failure of A; easy questions and other
    templates say nothing.
    """
    arms = bandit.start(RESULT, ASSIGNMENT, Bandit(), CFG)
    outcomes = [
        rollout("t0", "A", 1.0),
        rollout("d0", "A", 0.0),
        rollout("t0", "", 1.0),
        rollout("easy", "B", 1.0),
        rollout("t0", "old", 1.0),
    ]
    after = bandit.update(arms, outcomes, CFG)
    assert (after.successes, after.failures) == (
        (3.0, 1.0),
        (3.0, 3.0),
    ) and after.members == arms.members


def test_draws_keep_members_and_plain_places_and_depend_on_seed_and_question_only():
    arms = bandit.start(RESULT, ASSIGNMENT, Bandit(), CFG)
    drawn = bandit.draw(arms, ASSIGNMENT, list(QUESTIONS.values()), CFG, "7")
    assert (
        drawn.templates["d0"] == ("A", "A", "A", "")
        and drawn.templates["d2"] == ("B", "B", "B", "")
        and "easy" not in drawn.templates
    )
    assert (
        len(drawn.templates["t0"]) == 4
        and drawn.templates["t0"][3] == ""
        and "" not in drawn.templates["t0"][:3]
    )
    assert (
        bandit.draw(arms, ASSIGNMENT, [QUESTIONS["t0"]], CFG, "7").templates["t0"]
        == drawn.templates["t0"]
    )
    groups = {
        bandit.draw(arms, ASSIGNMENT, [QUESTIONS["t0"]], CFG, str(seed)).templates["t0"]
        for seed in range(40)
    }
    assert len(groups) > 3
    same = config.AssignConfig(plain_rollouts=1, bandit=True, same_template_in_group=True)
    assert {
        bandit.draw(arms, ASSIGNMENT, [QUESTIONS["t0"]], same, str(s)).templates["t0"]
        for s in range(40)
    } == {
        ("A",) * 3 + ("",),
        ("B",) * 3 + ("",),
    }


def test_it_finds_the_better_template_and_follows_when_that_changes():
    """B wins 6 of 10 rollouts, A 1 of 10; after 60 steps it is the other way round."""
    cfg = config.AssignConfig(plain_rollouts=0, bandit=True, bandit_discount=0.95)
    assignment = Assignment({"t0": ("A",) * 6})
    arms, rng, shares = bandit.start(RESULT, assignment, Bandit(), cfg), random.Random(0), []
    for step in range(120):
        odds = {"A": 0.1, "B": 0.6} if step < 60 else {"A": 0.6, "B": 0.1}
        group = bandit.draw(arms, assignment, [QUESTIONS["t0"]], cfg, str(step)).templates["t0"]
        arms = bandit.update(
            arms, [rollout("t0", z, float(rng.random() < odds[z])) for z in group], cfg
        )
        shares.append(group.count("B") / 6)
    assert np.mean(shares[30:60]) > 0.85 and np.mean(shares[90:]) < 0.3


def test_the_state_goes_through_json_exactly():
    arms = bandit.update(
        bandit.start(RESULT, ASSIGNMENT, Bandit(), CFG),
        [rollout("t0", "A", 1.0)],
        config.AssignConfig(bandit=True, bandit_discount=0.9),
    )
    state = RunState(None, bandit=arms, best_template="A", assignment=ASSIGNMENT)
    assert RunState.from_json(None, json.loads(json.dumps(state.to_json()))) == state


def test_a_prompt_phase_leaves_templates_or_keeps_those_from_before_training():
    cfg = config.resolve(Config(assign=config.AssignConfig(plain_rollouts=1, bandit=True)))
    assignment = next_assignment(RESULT, RunState(None, hard_ids=("t0", "d0")), cfg)
    assert set(assignment.templates) == {"t0", "d0"} and best_template(RESULT, "old") == "A"
    arms = bandit.start(RESULT, assignment, Bandit(), cfg.assign)
    held = RunState(None, assignment=assignment, bandit=arms, best_template="A")
    assert next_assignment(None, held, cfg) == Assignment() and best_template(None, "A") == "A"
    assert bandit.start(None, Assignment(), arms, cfg.assign) == Bandit()
    first = config.resolve(Config(gepa=config.GepaConfig(schedule="first")))
    assert (
        next_assignment(None, held, first) == assignment
        and bandit.start(None, assignment, arms, cfg.assign) == arms
    )


@pytest.mark.parametrize("scores", [((0, 0),), ((0, 0), (0, 0))])
def test_where_nothing_helps_the_best_template_is_the_empty_one(scores):
    names = ("", "A")[: len(scores)]
    assert (
        best_template(
            SearchResult(names, (None, 0)[: len(scores)], ("a", "b"), (), scores, ()), "old"
        )
        == ""
    )
