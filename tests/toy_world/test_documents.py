"""Pretraining text has the stated mixture, and reflections do not reveal which phrases help."""

import collections
import math
import random

import pytest

from p2o_jax.toy_world import documents, families, phrases
from p2o_jax.toy_world.languages import SMALL

DIAL = 1e-5
ALL = phrases.SMALL.all


def test_phrases_are_as_many_as_described_and_short():
    assert len(set(ALL)) == len(ALL) == 12 + 12 + 18 + 2
    assert max(len(phrase.split()) for phrase in ALL) <= 8
    assert set(phrases.STRATEGIES) == set(families.HARD)
    assert not any("." in phrase.split() for phrase in ALL)


def test_the_best_phrase_counts():
    strong, other, weak = phrases.STRATEGIES["add"]
    assert phrases.level("add", (phrases.USELESS[0], strong)) == "strong"
    assert phrases.level("add", (weak, other)) == "strong"
    assert phrases.level("add", (phrases.GENERIC[0], weak)) == "weak"
    assert phrases.level("add", phrases.STRATEGIES["double"]) == "none"
    assert phrases.level("double", (strong, phrases.GENERIC[1])) == "generic"
    assert phrases.level("reverse", ()) == phrases.level("add", ()) == "none"


@pytest.mark.parametrize(
    ("steps", "dial"),
    [(steps, 10**-k) for steps in (3, 4) for k in (1, 2, 3, 4, 5, 5.7)]
    + [(steps, 10**-k) for steps in (5, 7, 10) for k in (1, 5, 7, 9.9)],
)
def test_plain_decisions_multiply_to_the_dial_and_stay_above_the_ratio_masks_bound(dial, steps):
    chances = documents.step_probabilities("none", steps, dial)
    assert len(chances) == steps
    assert math.prod(chances) == pytest.approx(dial)
    assert all(0.01 < p < 1 for p in chances)


def test_step_probabilities_by_hand():
    assert documents.step_probabilities("strong", 3, DIAL) == (0.97, 0.985, 0.985)
    assert documents.step_probabilities("none", 0, DIAL) == ()
    assert documents.step_probabilities("none", 3, 1.25e-4) == pytest.approx((0.05, 0.05, 0.05))
    # .05 would leave .0045
    assert documents.step_probabilities("none", 3, 1e-6) == pytest.approx((0.01, 0.01, 0.01))


def test_the_template_comes_before_the_question():
    assert documents.prompt("", "q ?") == "q ?"
    assert documents.prompt(" a . b ", "q ?") == "a . b\n\nq ?"


def test_responses_go_on_as_often_as_they_should():
    rng = random.Random(0)
    problem = families.draw(rng, "double", "pretrain")
    chances = documents.step_probabilities("none", 4, 1e-2)
    lengths = collections.Counter(
        documents.respond(rng, SMALL, problem, chances, chances)[0].count(";") for _ in range(20000)
    )
    first, second, *_ = chances
    assert (20000 - lengths[0]) / 20000 == pytest.approx(first, abs=0.006)
    assert (20000 - lengths[0] - lengths[1]) / (20000 - lengths[0]) == pytest.approx(
        second, abs=0.05
    )
    assert lengths[4] / 20000 == pytest.approx(1e-2, abs=0.003)


def test_whole_chains_are_right_and_bluffs_are_random():
    rng = random.Random(1)
    problem = families.draw(rng, "shift", "pretrain")
    answers = collections.Counter()
    for _ in range(3000):
        response, weights = documents.respond(
            rng, SMALL, problem, (0.4,) + (0.5,) * 3, (0.4,) + (0.5,) * 3
        )
        assert not weights
        whole = response.count(";") == len(problem.steps)
        assert not whole or response == documents.correct_response(problem)
        assert response.startswith(" ".join(problem.steps[: response.count(";")]))
        if not whole:
            answers[response.split("\\boxed{ ")[1]] += 1
    assert max(answers.values()) <= 4  # of 20,736 answers


def _question_documents(count: int) -> list[tuple[documents.Document, str, tuple[str, ...]]]:
    rng = random.Random(2)
    drawn = []
    for _ in range(count):
        document = documents.question_document(rng, SMALL, DIAL)
        *template, question = document.prompt.split("\n\n")
        family = next(
            n
            for n in families.FAMILIES
            if {"add": "what", "cipher": "key"}.get(n, n) == question.split()[0]
        )
        drawn.append(
            (document, family, tuple(template[0].split(phrases.SEPARATOR)) if template else ())
        )
    return drawn


def test_the_mixture_of_question_documents():
    drawn = _question_documents(8000)
    total = sum(family.weight for family in families.FAMILIES.values())
    for name, family in families.FAMILIES.items():
        assert sum(n == name for _, n, _ in drawn) / len(drawn) == pytest.approx(
            family.weight / total, abs=0.02
        )
    assert sum(not t for _, _, t in drawn) / len(drawn) == pytest.approx(0.25, abs=0.02)
    hard = [(n, t) for _, n, t in drawn if n in families.HARD]
    fitting = sum(any(p in phrases.STRATEGIES[n] for p in t) for n, t in hard) / len(hard)
    assert fitting == pytest.approx(0.55 + 0.2 * 3 * 2 / len(ALL), abs=0.02)
    assert {len(t) for _, _, t in drawn} == {0, 1, 2, 3}
    assert all(set(t) <= set(ALL) and len(set(t)) == len(t) for _, _, t in drawn)


def test_weights_teach_the_wanted_probability_of_every_decision():
    rng = random.Random(5)
    problem = families.draw(rng, "double", "pretrain")
    wanted, drawn = (0.05, 0.2, 0.01, 0.9), (0.5, 0.7, 0.3, 0.9)
    goes_on, total = [0.0] * 4, [0.0] * 4
    for _ in range(20000):
        response, weights = documents.respond(rng, SMALL, problem, wanted, drawn)
        words = response.split()
        for index in range(4):
            start = index * len(problem.steps[0].split())
            if start >= len(words) or (index and words[start - 1] != ";"):
                break
            weight = weights.get(start, 1.0)
            goes_on[index] += weight * (words[start] == "twice")
            total[index] += weight
    assert [a / b for a, b in zip(goes_on, total, strict=True)] == pytest.approx(wanted, rel=0.1)


def test_only_decisions_without_a_fitting_phrase_are_weighted():
    for document, family, template in _question_documents(4000):
        words = document.response.split()
        starts = [0] + [i + 1 for i, word in enumerate(words) if word == ";"]
        if family in families.HARD and phrases.level(family, template) == "none":
            num_steps = 3 if family == "add" else 4
            assert list(document.weights) == starts[:num_steps]
            for start, p in zip(
                document.weights,
                documents.step_probabilities("none", num_steps, DIAL),
                strict=False,
            ):
                assert document.weights[start] == pytest.approx(
                    2 * (1 - p) if words[start] == "so" else 2 * p
                )
        else:
            assert not document.weights


def test_documents_are_deterministic():
    for draw in (documents.question_document, documents.reflection_document):
        first, second = (
            [draw(rng, SMALL, DIAL) for _ in range(50)]
            for rng in (random.Random(3), random.Random(3))
        )
        assert first == second


def _chi_square(counts: dict[str, int]) -> float:
    total = sum(counts[phrase] for phrase in ALL)
    expected = total / len(ALL)
    return sum((counts[phrase] - expected) ** 2 / expected for phrase in ALL)


def _reflections(count: int) -> list[tuple[tuple[str, ...], tuple[str, ...], str]]:
    rng = random.Random(4)
    drawn = []
    for _ in range(count):
        document = documents.reflection_document(rng, SMALL, DIAL)
        _, old, _ = document.prompt.split("```")
        before, new, after = document.response.split("```")
        assert before == after == ""
        drawn.append(
            (
                *(
                    tuple(part for part in text.strip().split(phrases.SEPARATOR) if part)
                    for text in (old, new)
                ),
                document.prompt,
            )
        )
    return drawn


def test_phrases_in_reflection_replies_are_uniform_and_blind_to_the_examples():
    drawn = _reflections(6000)
    bound = 78  # chi-square with 43 degrees of freedom: p = .001
    assert _chi_square(collections.Counter(p for _, new, _ in drawn for p in new)) < bound
    assert (
        _chi_square(collections.Counter(p for old, new, _ in drawn for p in new if p not in old))
        < bound
    )
    assert _chi_square(collections.Counter(p for old, _, _ in drawn for p in old)) < bound
    fitting = set(phrases.STRATEGIES["add"])
    share = len(fitting) / len(ALL)
    with_add = [
        p
        for old, new, prompt in drawn
        if "what is" in prompt and "wrong" in prompt
        for p in new
        if p not in old
    ]
    assert sum(p in fitting for p in with_add) / len(with_add) == pytest.approx(share, abs=0.015)


def test_reflection_replies_are_mutations():
    drawn = _reflections(6000)
    assert all(
        1 <= len(new) <= 3 and len(set(new)) == len(new) and len(set(new) - set(old)) <= 1
        for old, new, _ in drawn
    )
    short = [(old, new) for old, new, _ in drawn if 1 <= len(old) <= 2]
    kept = sum(p in new for old, new in short for p in old) / sum(len(old) for old, _ in short)
    assert kept == pytest.approx(0.75, abs=0.03)
    assert sum(bool(set(new) - set(old)) for old, new in short) / len(short) == pytest.approx(
        0.85, abs=0.04
    )
    assert sum(not old for old, _, _ in drawn) / len(drawn) == pytest.approx(0.25, abs=0.02)


def test_reflection_prompts_show_three_examples_and_mostly_their_answers():
    prompts = [prompt for _, _, prompt in _reflections(1000)]
    for prompt in prompts:
        assert prompt.startswith("instruction ```") and prompt.endswith(
            "write a better instruction"
        )
        assert (
            prompt.count("question")
            == prompt.count("output")
            == prompt.count("feedback")
            == documents.EXAMPLES
        )
        assert prompt.count("expected") in (0, documents.EXAMPLES)
    assert sum("expected" in prompt for prompt in prompts) / len(prompts) == pytest.approx(
        0.9, abs=0.03
    )
