"""Training and held-out questions are fixed, distinct, and disjoint from each other and from
pretraining.
"""

import dataclasses
import random

import pytest

from p2o_jax import config, types
from p2o_jax.toy_world import documents, languages, questions

CFG = config.WorldConfig()
of_every_size = pytest.mark.parametrize(
    "cfg", [config.WorldConfig(size=size) for size in languages.LANGUAGES], ids=lambda cfg: cfg.size
)


@of_every_size
def test_counts_and_meta(cfg):
    train, heldout, language = (
        questions.train_questions(cfg),
        questions.heldout_questions(cfg),
        languages.of(cfg),
    )
    for name, family in language.families.items():
        own = [q for q in train if q.meta["family"] == name]
        assert len(own) == (cfg.hard_per_family if family.hard else cfg.easy_per_family)
        assert all(q.meta["hard"] == family.hard for q in own)
    assert [q.meta["family"] for q in heldout] == [
        name for name in language.hard for _ in range(cfg.heldout_per_family)
    ]
    assert all(q.meta["hard"] for q in heldout)
    assert all(
        q.id == types.question_id(q.messages) and q.messages[-1]["role"] == "user"
        for q in train + heldout
    )


def test_questions_are_deterministic_and_follow_the_seed():
    assert questions.train_questions(CFG) == questions.train_questions(CFG)
    other = questions.train_questions(dataclasses.replace(CFG, seed=1))
    assert {q.id for q in other} != {q.id for q in questions.train_questions(CFG)}


@of_every_size
def test_training_heldout_and_pretraining_are_disjoint_for_any_pair_of_seeds(cfg):
    train, heldout, pretraining = set(), set(), set()
    for seed in range(3):
        cfg = dataclasses.replace(cfg, seed=seed, hard_per_family=100, heldout_per_family=100)
        train |= {q.text for q in questions.train_questions(cfg)}
        heldout |= {q.text for q in questions.heldout_questions(cfg)}
        rng = random.Random(seed)
        pretraining |= {
            documents.draw_problem(rng, languages.of(cfg)).question for _ in range(5000)
        }
    assert not train & heldout
    assert not train & pretraining
    assert not heldout & pretraining


@of_every_size
def test_sets_that_differ_in_kind_are_of_other_questions(cfg):
    """Their texts are in no other set, nor in pretraining; those of all sizes are deterministic."""
    several = {
        name: questions.elsewhere_questions(cfg, name) for name in languages.of(cfg).elsewhere
    }
    assert several == {name: questions.elsewhere_questions(cfg, name) for name in several}
    texts = [q.text for part in several.values() for q in part]
    assert len(set(texts)) == len(texts) and all(
        len(part) == cfg.heldout_per_family * len(languages.of(cfg).elsewhere[name])
        for name, part in several.items()
    )
    rng = random.Random(0)
    usual = questions.train_questions(cfg) + questions.heldout_questions(cfg)
    shown = {documents.draw_problem(rng, languages.of(cfg)).question for _ in range(5000)}
    assert not set(texts) & {q.text for q in usual} and not set(texts) & shown


def test_sets_of_the_small_world_by_hand():
    words = {
        name: [q.text.split() for q in questions.elsewhere_questions(CFG, name)]
        for name in ("longer", "wording")
    }
    assert {(w[0], len(w)) for w in words["longer"]} == {("double", 7), ("shift", 7)}
    assert {tuple(w[:3]) for w in words["wording"] if w[1] != "double" and w[1] != "shift"} == {
        ("so", "what", "is"),
        ("please", "use", "key"),
    }
    (sums, *_) = (q for q in questions.elsewhere_questions(CFG, "wording") if "+" in q.text)
    first, second = sums.text.removeprefix("so what is ").rstrip(" ?").replace(" ", "").split("+")
    assert int(sums.answer.replace(" ", "")) == int(first) + int(second)


def test_a_set_that_the_world_does_not_have_is_an_error():
    with pytest.raises(config.ConfigError, match="size=small has no such .* only longer, wording"):
        questions.elsewhere_questions(CFG, "untrained")


def test_ids_are_unique():
    everything = questions.train_questions(CFG) + questions.heldout_questions(CFG)
    assert len({q.id for q in everything}) == len(everything)


@of_every_size
def test_no_question_holds_a_phrase_or_a_step(cfg):
    language, asked = languages.of(cfg), questions.train_questions(cfg)
    rng = random.Random(0)
    starts = {
        step.split()[0]
        for name in language.hard
        for step in language.families[name].make(rng).steps
    }
    assert len(starts) >= len(language.hard)
    assert not {word for q in asked for word in q.text.split()} & {*starts, "so", "."}
    assert not any(phrase in q.text for q in asked for phrase in language.phrases.all)
