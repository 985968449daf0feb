"""Strategies of the medium world have three parts, each of which counts, and narrow gates are below
the ratio mask's bound.
"""

import collections
import itertools
import math
import random

import pytest

from p2o_jax.toy_world import documents, medium, phrases
from p2o_jax.toy_world.languages import MEDIUM

DIAL = 1e-5
STEPS, RIGHT, LEFT, ADD = medium.STEPS, medium.RIGHT, medium.LEFT, medium.ADD


def test_the_number_of_parts_counts_in_any_order_and_beside_others():
    level = MEDIUM.phrases.level
    assert level("add", (ADD, "stay calm", RIGHT, STEPS), 3) == "strong"
    assert level("add", (ADD, RIGHT), 2) == level("add", (STEPS,), 1) == "strong"
    assert level("add", (STEPS, LEFT, ADD), 3) == level("add", (LEFT, STEPS), 2) == "part"
    assert level("add", (), 1) == level("add", (LEFT, medium.LARGER), 1) == "none"
    assert level("reverse", (STEPS,), 1) == "none"


def test_the_last_symbol_says_how_many_parts_a_question_needs():
    needed = {
        "double": {
            **dict.fromkeys("0123", 1),
            **dict.fromkeys("456", 2),
            **dict.fromkeys("789", 3),
        },
        "shift": {letter: 1 + i // 4 for i, letter in enumerate("abcdefghijkl")},
    }
    rng = random.Random(5)
    for name, expected in needed.items():
        for family in [f for f in MEDIUM.pretrained if f.name == name]:
            problems = [family.make(rng) for _ in range(200)]
            last = {p.question.split()[-2]: p.parts for p in problems}
            assert last == expected and {p.question.split()[-1] for p in problems} == {"?"}


def test_families_share_parts_but_no_pair_of_direction_and_operation():
    """What a part is worth to an untrained family can be learned from trained ones."""
    strategies = medium.STRATEGIES
    assert len({(direction, operation) for _, direction, operation in strategies.values()}) == 6
    assert {steps for steps, *_ in strategies.values()} == {STEPS}
    trained = set(itertools.chain(*(strategies[name] for name in MEDIUM.hard)))
    untrained = [f.name for f in medium.ELSEWHERE["untrained"]]
    assert untrained == ["total", "mirror"] and not {*untrained} & {*MEDIUM.families}
    assert all(set(strategies[name]) <= trained for name in untrained)
    assert len(MEDIUM.phrases.all) == 7 + 8 + 7
    assert set(strategies) == {*MEDIUM.hard, *untrained}


def test_instructions_have_as_many_parts_as_they_are_listed_under():
    for family in medium.STRATEGIES:
        listed = MEDIUM.phrases.instructions(family)
        assert {kind: len(several) for kind, several in listed.items()} == {
            "strong": 1,
            "two": 3,
            "one": 3,
        }
        for kind, parts in {"one": 1, "two": 2, "strong": 3}.items():
            for template in listed[kind]:
                chosen = template.split(phrases.SEPARATOR)
                levels = [MEDIUM.phrases.level(family, chosen, n) for n in (1, 2, 3)]
                assert levels == ["strong"] * parts + ["part"] * (3 - parts)


def test_a_chain_is_likely_with_enough_parts_alone():
    """Four steps: .1 x .985³ and .97 x .985³."""
    rates = [
        math.prod(documents.step_probabilities(level, 4, DIAL))
        for level in ("none", "part", "strong")
    ]
    assert rates == pytest.approx([1e-5, 0.09557, 0.927], rel=1e-3)


def test_the_first_step_behind_a_narrow_gate_is_below_the_ratio_masks_bound():
    """.001 x .21544³ = .05 x .05848³ = .021544³ = 1e-5."""
    gates = {"add": 0.021544, "double": 0.05, "shift": 0.001, "compare": 0.001}
    for name, gate in gates.items():
        problem = MEDIUM.families[name].make(random.Random(0))
        plain = documents.chances(MEDIUM, problem, (), DIAL)
        strong = documents.chances(MEDIUM, problem, medium.STRATEGIES[name], DIAL)
        assert plain[0] == pytest.approx(gate, 1e-4) and math.prod(plain) == pytest.approx(DIAL)
        below = [p / s < 0.01 for p, s in zip(plain, strong, strict=True)]
        assert below == [gate == 0.001] + [False] * (len(plain) - 1)
    assert documents.step_probabilities("none", 4, DIAL, 0.05)[1] == pytest.approx(0.05848, 1e-3)


def test_templates_that_fit_have_one_to_three_parts_among_at_most_four_phrases():
    rng, parts = random.Random(0), collections.Counter[int]()
    for _ in range(3000):
        chosen = MEDIUM.phrases.draw(rng, rng.randint(1, 4))
        fitting = MEDIUM.phrases.fitting(rng, "shift", chosen)
        number = len({*fitting} & {*medium.STRATEGIES["shift"]})
        parts[number] += 1
        assert len(set(fitting)) == len(fitting) <= 4
        assert len(fitting) >= min(len(chosen), 4) or number
    assert all(parts[n] / 3000 == pytest.approx(1 / 3, abs=0.08) for n in (1, 2, 3))


def test_a_reflection_adds_one_phrase_at_most_and_all_alike():
    """Replies of documents: every phrase as often as another, whatever the examples are."""
    rng, new = random.Random(1), collections.Counter[str]()
    for _ in range(4000):
        document = documents.reflection_document(rng, MEDIUM, DIAL)
        before = document.prompt.split("```")[1].strip().split(phrases.SEPARATOR)
        after = document.response.strip("` ").split(phrases.SEPARATOR)
        added = set(after) - set(before)
        assert len(added) <= 1 and 1 <= len(after) <= 4
        new.update(added)
    expected = sum(new.values()) / 22
    assert sum((new[p] - expected) ** 2 / expected for p in MEDIUM.phrases.all) < 47  # p = .001


def test_reworded_questions_are_the_same_problems():
    words = {
        "add": "find sum of numbers _ _ _ , _ _ _ ?",
        "double": "two times each of _ _ _ _ ?",
        "shift": "find letters behind _ _ _ _ ?",
        "compare": "find larger of each _ _ , _ _ , _ _ , _ _ ?",
    }
    for family in medium.ELSEWHERE["wording"]:
        usual = MEDIUM.families[family.name].make(random.Random(2))
        other = family.make(random.Random(2))
        assert (other.steps, other.answer) == (usual.steps, usual.answer)
        symbols = [w for w in usual.question.split() if w in family.symbols]
        assert [w for w in other.question.split() if w in family.symbols] == symbols
        blank = ["_" if w in family.symbols else w for w in other.question.split()]
        assert " ".join(blank) == words[family.name]


def test_longer_questions_have_a_step_more():
    rng = random.Random(3)
    for family in medium.ELSEWHERE["longer"]:
        usual = len(MEDIUM.families[family.name].make(rng).steps)
        assert len(family.make(rng).steps) == usual + 1


def test_pretraining_shows_what_training_does_not_have():
    rng = random.Random(4)
    drawn = collections.Counter(
        documents.draw_problem(rng, MEDIUM).question.split()[0] for _ in range(4000)
    )
    total = 3 + 3 * 1 + 2 * 0.5 + 4 * 0.5 + 4 * 0.25 + 2 * 0.7
    assert drawn["totals"] / 4000 == pytest.approx(0.7 / total, abs=0.015)
    assert drawn["two"] / 4000 == pytest.approx(0.25 / total, abs=0.01)
    assert drawn["what"] / 4000 == pytest.approx(3.5 / total, abs=0.03)
