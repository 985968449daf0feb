"""Which rollout gets which template."""

from collections import Counter
from dataclasses import replace

import pytest
from scipy import stats

from p2o_jax import config, gepa
from p2o_jax.p2o.assign import assign, next_assignment, prompts_for
from p2o_jax.state import Assignment, RunState
from p2o_jax.types import Question, SearchResult
from tests.factories import change_config, make_question

# Mean dev scores 0, 1/2, 1/4, 1/4; question d3 is solved by nobody, candidate 3 is not in the
# cover.
RESULT = SearchResult(
    templates=("", "A", "B", "C"),
    parents=(None, 0, 0, 1),
    dev_ids=("d0", "d1", "d2", "d3"),
    train_ids=("t0", "t1"),
    score_ZN=((0, 0, 0, 0), (1, 1, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0)),
    cover=(1, 2),
)
FREE = config.AssignConfig(plain_rollouts=0)


def frequencies(name, result=RESULT):
    counts = Counter()
    for seed in range(300):
        counts.update(assign(result, [name], 6, FREE, str(seed)).templates[name])
    return counts


@pytest.mark.parametrize("name", ["t0", "d3", "neither"])
def test_templates_are_drawn_by_dev_score(name):
    counts = frequencies(name)
    assert set(counts) == {"A", "B"}
    assert stats.chisquare([counts["A"], counts["B"]], [1200, 600]).pvalue > 0.001


def test_a_dev_question_gets_templates_that_solve_it():
    assert set(frequencies("d0")) == set(frequencies("d1")) == {"A"}
    assert set(frequencies("d2")) == {"B"}


def test_weights_have_a_floor():
    lucky = SearchResult(("", "A"), (None, 0), ("d0",), ("t0",), ((0.0,), (0.0,)), (0, 1))
    counts = frequencies("t0", lucky)
    assert stats.chisquare([counts[""], counts["A"]]).pvalue > 0.001


def test_the_last_rollouts_stay_plain():
    group = assign(RESULT, ["t0"], 6, config.AssignConfig(plain_rollouts=2), "s").templates["t0"]
    assert len(group) == 6 and group[4:] == ("", "") and "" not in group[:4]
    assert assign(RESULT, ["t0"], 2, config.AssignConfig(plain_rollouts=5), "s").templates[
        "t0"
    ] == ("", "")


@pytest.mark.parametrize(
    ("schedule", "step", "assigned"),
    [("every_epoch", 4, True), ("first", 0, True), ("first", 4, False)],
)
def test_hints_are_assigned_when_templates_would_evolve(schedule, step, assigned):
    cfg = change_config(
        config.Config(rollout=config.RolloutConfig(group_size=4)),
        gepa__reflector="hint",
        gepa__schedule=schedule,
        gepa__min_hard=1,
        assign__plain_rollouts=1,
    )
    hard = [replace(make_question("a"), hint="Count."), make_question("b")]
    before = Assignment({"c": ("z",) * 4})
    state = RunState(None, step=step, phase="prompts", assignment=before)
    assert not gepa.is_due(step, len(hard), cfg.gepa)
    after = next_assignment(None, state, cfg, hard)
    hinted = Assignment({"a": ("Count.", "Count.", "Count.", "")})  # b has no hint
    assert after == (hinted if assigned else before)


def test_same_template_in_group():
    cfg = config.AssignConfig(plain_rollouts=1, same_template_in_group=True)
    groups = [assign(RESULT, ["t0"], 4, cfg, str(seed)).templates["t0"] for seed in range(30)]
    assert set(groups) == {("A", "A", "A", ""), ("B", "B", "B", "")}


def test_assignment_depends_on_seed_and_question_only():
    names = ["t0", "t1", "d3", "d0"]
    assert assign(RESULT, names, 6, FREE, "s") == assign(RESULT, names[::-1], 6, FREE, "s")
    assert assign(RESULT, names, 6, FREE, "s") != assign(RESULT, names, 6, FREE, "t")
    assert (
        len(set(assign(RESULT, [f"t{i}" for i in range(20)], 6, FREE, "s").templates.values())) > 5
    )


def test_an_empty_cover_assigns_nothing():
    assert (
        assign(SearchResult(("",), (None,), (), (), ((),), ()), ["t0"], 6, FREE, "s")
        == Assignment()
    )


def test_asks_in_group_order_with_stable_names():
    a, b = (Question(name, ({"role": "user", "content": name},), "x") for name in ("qa", "qb"))
    asks = prompts_for([a, b], Assignment({"qb": ("T", "")}), 2, "step 7")
    assert [(ask.question.id, ask.template, ask.name) for ask in asks] == [
        ("qa", "", "step 7/qa/0"),
        ("qa", "", "step 7/qa/1"),
        ("qb", "T", "step 7/qb/0"),
        ("qb", "", "step 7/qb/1"),
    ]
    assert prompts_for([b], Assignment({"qb": ("T", "")}), 2, "step 7") == asks[2:]
    with pytest.raises(AssertionError, match="group size 3"):
        prompts_for([b], Assignment({"qb": ("T", "")}), 3, "step 7")


def test_a_further_group_of_a_question_is_plain():
    a = Question("qa", ({"role": "user", "content": "qa"},), "x")
    asks = prompts_for([a, a], Assignment({"qa": ("T", "")}), 2, "n")
    assert [(ask.template, ask.name) for ask in asks] == [
        ("T", "n/qa/0"),
        ("", "n/qa/1"),
        ("", "n/qa/2"),
        ("", "n/qa/3"),
    ]
