"""The single rules of GEPA: budgets, fronts, draws, the cover."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from gepa_toy import questions, settings
from hypothesis import given
from hypothesis import strategies as st

from p2o_jax import config
from p2o_jax.gepa import budget, cover, draws, pareto
from p2o_jax.p2o import assign
from p2o_jax.types import SearchResult

GOLDEN = Path(__file__).parents[1] / "golden" / "gepa_budget.json"
tables = st.integers(1, 6).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n), min_size=1, max_size=8
    )
)


def test_auto_budgets_equal_the_released_codes():
    rows = json.loads(GOLDEN.read_text())
    assert {row["level"] for row in rows} == set(budget.LEVELS)
    assert [budget.auto(row["level"], row["dev_size"]) for row in rows] == [
        row["budget"] for row in rows
    ]


def test_budget_is_a_level_a_count_or_passes_over_all_questions():
    assert budget.total(settings(budget="heavy_4"), 200, 300) == 11040
    assert budget.total(settings(budget="calls", max_metric_calls=77), 200, 300) == 77
    assert budget.total(settings(budget="full_evals", max_full_evals=3), 20, 30) == 150


def test_fronts_by_hand():
    score_ZN = [(0, 0, 1, 0), (1, 0, 1, 0), (1, 0, 0, 0)]
    assert pareto.fronts(score_ZN) == ((1, 2), (0, 1, 2), (0, 1), (0, 1, 2))
    assert pareto.weights(score_ZN, count_unsolved=True) == {0: 3, 1: 4, 2: 3}
    assert pareto.weights(score_ZN, count_unsolved=False) == {0: 1, 1: 2, 2: 1}


def test_weights_are_equal_when_nothing_is_solved():
    assert pareto.weights([(0, 0), (0, 0), (0, 0)], count_unsolved=False) == {0: 2, 1: 2, 2: 2}


@given(tables)
def test_fronts_equal_adding_candidates_one_by_one(score_ZN):
    best, front = [-1.0] * len(score_ZN[0]), [set() for _ in score_ZN[0]]
    for z, row in enumerate(score_ZN):
        for n, score in enumerate(row):
            if score > best[n]:
                best[n], front[n] = score, {z}
            elif score == best[n]:
                front[n].add(z)
    assert [set(f) for f in pareto.fronts(score_ZN)] == front


@given(tables, st.sampled_from([0.0, 0.5, 0.7]))
def test_cover_covers_all_that_is_covered_and_each_member_adds_something(score_ZN, above):
    members, seen, sizes = cover.greedy_cover(score_ZN, above), set(), []
    for z in members:
        new = {n for n, score in enumerate(score_ZN[z]) if score > above} - seen
        assert new
        sizes.append(len(new))
        seen |= new
    assert seen == cover.covered(score_ZN, above)
    assert sizes == sorted(sizes, reverse=True)


def test_cover_by_hand():
    assert cover.greedy_cover([(0, 0, 1, 0), (1, 1, 0, 0), (1, 1, 1, 0), (0, 0, 0, 0)], 0.5) == (2,)
    # ties: the first one
    assert cover.greedy_cover([(1, 0, 0), (0, 1, 1), (1, 1, 0)], 0.5) == (
        1,
        0,
    )
    assert cover.greedy_cover([(0, 0), (0, 0)], 0.5) == ()  # the released code raises here
    assert cover.greedy_cover([()], 0.5) == ()
    graded = [(0.2, 0.8), (0.7, 0.7)]
    assert [cover.greedy_cover(graded, above) for above in (0.1, 0.5, 0.75, 0.9)] == [
        (0,),
        (1,),
        (0,),
        (),
    ]


def test_assignment_and_cover_mean_the_same_by_success():
    result = SearchResult(
        ("", "A", "B"),
        (None, 0, 0),
        ("d0", "d1"),
        (),
        ((0.0, 0.0), (0.7, 0.2), (0.4, 0.9)),
        (1, 2),
        success_above=0.6,
    )
    assert cover.greedy_cover(result.score_ZN, result.success_above) == result.cover
    assigned = assign.assign(result, ["d0", "d1"], 8, config.AssignConfig(plain_rollouts=0), "s")
    assert [set(assigned.templates[name]) for name in ("d0", "d1")] == [{"A"}, {"B"}]


@pytest.mark.parametrize(
    ("num", "dev_size", "num_dev"),
    [
        (450, 300.0, 300),
        (449, 300.0, 224),
        (40, 0.25, 10),
        (3, 300.0, 1),
        (2, 0.1, 1),
        (1, 300.0, 1),
        (0, 300.0, 0),
    ],
)
def test_split_sizes(num, dev_size, num_dev):
    pool = questions(num)
    train, dev = draws.split(pool, dev_size, "s")
    assert (len(train), len(dev)) == (num - num_dev, num_dev)
    assert sorted(q.id for q in (*train, *dev)) == [q.id for q in pool]


def test_split_depends_on_the_seed_but_not_on_the_order():
    pool = questions(40)
    assert draws.split(pool, 10, "s") == draws.split(pool[::-1], 10, "s")
    assert draws.split(pool, 10, "s") != draws.split(pool, 10, "t")


def test_parents_are_all_when_they_fit_and_distinct_when_they_do_not():
    rng = random.Random("x")
    assert draws.parents(rng, {0: 1, 3: 9}, 4, fill=False) == [0, 3]
    drawn = draws.parents(rng, dict.fromkeys(range(30), 1), 16, fill=False)
    assert len(set(drawn)) == len(drawn) == 16


def test_parents_fill_the_width_by_weight():
    rng = random.Random("x")
    counts = Counter(z for _ in range(500) for z in draws.parents(rng, {0: 1, 1: 3}, 6, fill=True))
    assert sum(counts.values()) == 3000
    assert abs(counts[1] - (500 + 2000 * 0.75)) < 100  # five standard deviations


def test_parents_are_drawn_by_weight():
    rng = random.Random("y")
    counts = Counter(draws.parents(rng, {0: 1, 1: 2, 2: 7}, 1, fill=True)[0] for _ in range(2000))
    expected = {0: 200, 1: 400, 2: 1400}
    # chi-square, 2 degrees of freedom, p = 0.001
    assert sum((counts[z] - e) ** 2 / e for z, e in expected.items()) < 13.8


def test_minibatches_use_up_the_train_set_before_repeating():
    rng, used = random.Random("m"), set()
    for _ in range(3):
        drawn = draws.minibatch(rng, used, 11, 3, set())
        assert not used & set(drawn) and len(set(drawn)) == 3
        used |= set(drawn)
    assert len(set(draws.minibatch(rng, used, 11, 3, set()))) == 3  # two are left: any may come


def test_minibatch_larger_than_the_train_set_is_all_of_it():
    assert sorted(draws.minibatch(random.Random(0), set(), 2, 3, {(0, 1)})) == [0, 1]


def test_minibatches_of_the_same_parent_differ():
    rng, taken = random.Random("m"), set()
    for _ in range(4):
        taken.add(tuple(sorted(draws.minibatch(rng, {0, 1, 2, 3}, 4, 3, taken))))
    assert len(taken) == 4
