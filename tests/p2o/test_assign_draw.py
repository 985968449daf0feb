"""The draws of templates, with the choices of earlier versions."""

import pytest

from p2o_jax import config
from p2o_jax.p2o.assign import assign, candidates, draw_group
from p2o_jax.types import SearchResult

# Question d3 is solved by no template.
RESULT = SearchResult(
    templates=("", "A", "B", "C"),
    parents=(None, 0, 0, 1),
    dev_ids=("d0", "d1", "d2", "d3"),
    train_ids=("t0", "t1"),
    score_ZN=((0, 0, 0, 0), (1, 1, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0)),
    cover=(1, 2, 3),
)
NAMES = ("t0", "t1", "d0", "d1", "d3")
RECORDED = {  # by same_template_in_group; - is plain
    False: "CBAC-- CAAA-- AAAA-- AAAA-- CAAA--",
    True: "CCCC-- CCCC-- AAAA-- AAAA-- CCCC--",
}


def shown(assignment):
    return " ".join("".join(z or "-" for z in assignment.templates[name]) for name in NAMES)


@pytest.mark.parametrize("same", [False, True])
def test_random_choices_are_those_recorded(same):
    cfg = config.AssignConfig(plain_rollouts=2, same_template_in_group=same)
    assert shown(assign(RESULT, NAMES, 6, cfg, "7")) == RECORDED[same]


def test_a_group_ends_with_its_plain_rollouts():
    cfg = config.AssignConfig(plain_rollouts=2)
    assert draw_group(4, cfg, lambda n: ["A", "B", "C"][:n]) == ("A", "B", "", "")
    assert draw_group(1, cfg, lambda n: ["A"] * n) == ("",)
    shared = config.AssignConfig(plain_rollouts=1, same_template_in_group=True)
    assert draw_group(3, shared, lambda n: ["A", "B", "C"][:n]) == ("A", "A", "")


def test_dev_questions_get_what_solves_them():
    columns = {name: i for i, name in enumerate(RESULT.dev_ids)}
    assert candidates(RESULT, columns, "d0") == [0]
    assert candidates(RESULT, columns, "d1") == [0, 2]
    assert candidates(RESULT, columns, "d3") == candidates(RESULT, columns, "t0") == [0, 1, 2]
