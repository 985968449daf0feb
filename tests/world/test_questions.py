"""Training and held-out questions are fixed, distinct, and disjoint from each other and from pretraining."""

import dataclasses
import random

from p2o_jax import config, records
from p2o_jax.world import documents, families, phrases, questions

CFG = config.World()


def test_counts_and_meta():
    train, heldout = questions.train_questions(CFG), questions.heldout_questions(CFG)
    for name, family in families.FAMILIES.items():
        own = [q for q in train if q.meta["family"] == name]
        assert len(own) == (CFG.hard_per_family if family.hard else CFG.easy_per_family)
        assert all(q.meta["hard"] == family.hard for q in own)
    assert [q.meta["family"] for q in heldout] == [name for name in families.HARD for _ in range(CFG.heldout_per_family)]
    assert all(q.meta["hard"] for q in heldout)
    assert all(q.id == records.question_id(q.messages) and q.messages[-1]["role"] == "user" for q in train + heldout)


def test_questions_are_deterministic_and_follow_the_seed():
    assert questions.train_questions(CFG) == questions.train_questions(CFG)
    other = questions.train_questions(dataclasses.replace(CFG, seed=1))
    assert {q.id for q in other} != {q.id for q in questions.train_questions(CFG)}


def test_training_heldout_and_pretraining_are_disjoint_for_any_pair_of_seeds():
    train, heldout, pretraining = set(), set(), set()
    for seed in range(3):
        cfg = dataclasses.replace(CFG, seed=seed, hard_per_family=100, heldout_per_family=100)
        train |= {q.text for q in questions.train_questions(cfg)}
        heldout |= {q.text for q in questions.heldout_questions(cfg)}
        rng = random.Random(seed)
        pretraining |= {documents.draw_problem(rng).question for _ in range(5000)}
    assert not train & heldout
    assert not train & pretraining
    assert not heldout & pretraining


def test_ids_are_unique():
    everything = questions.train_questions(CFG) + questions.heldout_questions(CFG)
    assert len({q.id for q in everything}) == len(everything)


def test_no_question_holds_a_phrase_or_a_step():
    words = {word for q in questions.train_questions(CFG) for word in q.text.split()}
    assert not words & {"units", "twice", "after", "look", "so", "."}
    assert not any(phrase in q.text for q in questions.train_questions(CFG) for phrase in phrases.ALL)
