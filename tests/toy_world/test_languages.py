"""The small language is what it always was, to the bit; the others are as large as they say, and
their documents fit.
"""

import random
import runpy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from p2o_jax import config, types
from p2o_jax.config import loading, rules
from p2o_jax.gepa.reflection import compact_prompt
from p2o_jax.toy_world import documents, packing, phrases, pretrain, questions, tokenizer
from p2o_jax.toy_world.languages import LANGUAGES, LARGE, MEDIUM, SMALL, Language

CONFIGS = Path(__file__).parents[2] / "configs"
every_size = pytest.mark.parametrize("size", LANGUAGES)


def config_of(size: str) -> config.Config:
    path = CONFIGS / f"world_{size}.py"
    return config.resolve(loading.from_config_dict(runpy.run_path(str(path))["get_config"]()))


def documents_of(language: Language) -> tuple[list[documents.Document], list[documents.Document]]:
    asked, reflected = (
        random.Random(f"0/world/pretrain/{kind}") for kind in ("questions", "reflections")
    )
    return (
        [documents.question_document(asked, language, 1e-5) for _ in range(200)],
        [documents.reflection_document(reflected, language, 1e-5) for _ in range(50)],
    )


def digest_of(asked) -> str:
    """The digest of questions without the fields that are newer than the digests below."""
    assert {question.scorer for question in asked} == {""}
    newer = ", scorer='', hint=''"
    return types.digest(*(repr(replace(q, hint="")).replace(newer, "") for q in asked))


def test_the_small_world_is_bit_for_bit_what_its_published_figures_were_measured_on():
    """Digests of the text; with another one every base has to be pretrained, and every result
    measured, again.
    """
    asked, reflected = documents_of(SMALL)
    cfg = config.WorldConfig()
    assert types.digest(*tokenizer.vocabulary(SMALL)) == "85a2dd0db5fadd5e"
    assert types.digest(*map(repr, asked)) == "01b49b167fbe436e"
    assert types.digest(*map(repr, reflected)) == "13e6343af4e0bd37"
    assert digest_of(questions.train_questions(cfg)) == "fe82e0f4c95a8e94"
    assert digest_of(questions.heldout_questions(cfg)) == "ad86809c357d115a"
    assert pretrain.base_directory(cfg).name == "base-12dee4f19ce9cbc6"
    assert (
        pretrain.base_directory(config.WorldConfig(p_chain_plain=1e-2, seed=1)).name
        == "base-3ec7ca5fbfd24d97"
    )


def test_the_medium_world_is_bit_for_bit_what_its_rows_were_measured_on():
    asked, reflected = documents_of(MEDIUM)
    cfg = config.WorldConfig(size="medium", steps=3000)
    assert types.digest(*tokenizer.vocabulary(MEDIUM)) == "ccbbf68b36b3e992"
    assert types.digest(*map(repr, asked)) == "d75fc82f4906d223"
    assert types.digest(*map(repr, reflected)) == "0f7ec4bb7018f567"
    assert digest_of(questions.train_questions(cfg)) == "1b6b03824a413a07"
    assert digest_of(questions.heldout_questions(cfg)) == "bd4c23dabef21362"
    several = {
        name: digest_of(questions.elsewhere_questions(cfg, name)) for name in MEDIUM.elsewhere
    }
    assert several == {
        "longer": "aac8fc5ec14eb023",
        "wording": "780dec1b356aa6d3",
        "untrained": "dc41dc4678781fef",
    }
    assert pretrain.base_directory(cfg).name == "base-1cc27313872c5984"


def test_the_small_worlds_rows_are_bit_for_bit_what_they_were():
    cfg = config.WorldConfig()
    asked, reflected = (
        random.Random(f"0/world/pretrain/{kind}") for kind in ("questions", "reflections")
    )
    packers = (
        packing.Packer(
            cfg.batch_rows,
            cfg.row_tokens,
            SMALL,
            lambda: documents.question_document(asked, SMALL, 1e-5),
        ),
        packing.Packer(
            *SMALL.reflection_shape,
            SMALL,
            lambda: documents.reflection_document(reflected, SMALL, 1e-5),
        ),
    )
    arrays = [
        repr(array.tolist()) for packer in packers for _ in range(2) for array in packer.batch()
    ]
    assert types.digest(*arrays) == "0b849ed35c22d21a"


def test_the_large_language_is_as_large_as_it_says():
    chains = {name: len(LARGE.families[name].make(random.Random(0)).steps) for name in LARGE.hard}
    assert len(chains) == 12 and len(LARGE.families) == 16
    assert min(chains.values()) == 5 and max(chains.values()) == 10
    said = LARGE.phrases
    assert (len(said.strategies), len(said.decoys), len(said.useless), len(said.generic)) == (
        12,
        34,
        18,
        2,
    )
    assert len(set(said.all)) == len(said.all) == 90
    assert set(said.strategies) == set(LARGE.hard)
    assert max(len(phrase.split()) for phrase in said.all) <= 8
    assert not any("." in phrase.split() for phrase in said.all)


def longest_documents(language: Language) -> list[tuple[documents.Document, documents.Document]]:
    """For each pretraining family the longest question document, and the longest reflection on it;
    all problems of a family are of one length.
    """
    longest_first = sorted(language.phrases.all, key=lambda phrase: -len(phrase.split()))
    template = phrases.join(longest_first[: language.phrases.max_phrases])
    longest = []
    for family in language.pretrained:
        problem = family.draw(random.Random(0), "pretrain")
        response = documents.correct_response(problem)
        asked = documents.Document(documents.prompt(template, problem.question), response)
        example = (problem.question, response, True, problem.answer)
        longest.append(
            (
                asked,
                documents.Document(
                    compact_prompt(template, [example] * documents.EXAMPLES), f"``` {template} ```"
                ),
            )
        )
    return longest


def num_tokens(docs: Iterable[documents.Document], language: Language) -> list[int]:
    ids = packing.ids_of_words(language)
    return [len(packing.encode(document, ids)[0]) for document in docs]


@every_size
def test_the_rule_on_row_tokens_is_the_longest_document_and_the_longest_reflection_fits(size):
    language = LANGUAGES[size]
    asked, reflected = (
        num_tokens(part, language) for part in zip(*longest_documents(language), strict=True)
    )
    fitting = config.Config(world=config.WorldConfig(size=size, row_tokens=max(asked)))
    short = config.Config(world=config.WorldConfig(size=size, row_tokens=max(asked) - 1))
    assert not [line for line in rules.problems(config.resolve(fitting), 1) if "world" in line]
    (line,) = [line for line in rules.problems(config.resolve(short), 1) if "world" in line]
    assert (
        f"config.world.row_tokens={max(asked) - 1}" in line
        and f"{size}, {max(asked)} tokens" in line
    )
    assert max(reflected) <= language.reflection_shape[1]


@every_size
def test_every_document_that_is_drawn_is_known_and_no_longer_than_the_longest(size):
    language, rng = LANGUAGES[size], random.Random(1)
    longest = [
        max(num_tokens(part, language)) for part in zip(*longest_documents(language), strict=True)
    ]
    for draw, bound in zip(
        (documents.question_document, documents.reflection_document), longest, strict=True
    ):
        longest_drawn = max(num_tokens((draw(rng, language, 1e-3) for _ in range(1500)), language))
        assert bound * 0.8 < longest_drawn <= bound


@pytest.mark.parametrize("size", ["medium", "large"])
def test_the_config_is_valid_and_holds_what_the_world_says(size):
    cfg, language = config_of(size), LANGUAGES[size]
    assert not rules.problems(cfg, 1) and cfg.world.size == size
    several = [questions.train_questions(cfg.world), questions.heldout_questions(cfg.world)]
    several += [questions.elsewhere_questions(cfg.world, name) for name in language.elsewhere]
    plain = [len(tokenizer.chat_words(q.text)) for part in several for q in part]
    assert max(plain) <= cfg.data.max_prompt_tokens
    for asked, reflected in longest_documents(language):
        prompt, response = (
            len(tokenizer.chat_words(asked.prompt)),
            len(tokenizer.split(asked.response)) + 1,
        )
        assert response <= cfg.rollout.max_new_tokens
        assert prompt <= config.max_templated_prompt_tokens(cfg)
        assert len(tokenizer.split(reflected.prompt)) <= cfg.gepa.reflect_prompt_tokens
        assert len(tokenizer.split(reflected.response)) + 1 <= cfg.gepa.reflect_new_tokens


def test_decisions_of_the_large_world_stay_above_the_ratio_masks_bound():
    dial = config_of("large").world.p_chain_plain
    for name in LARGE.hard:
        steps = len(LARGE.families[name].make(random.Random(0)).steps)
        assert min(documents.step_probabilities("none", steps, dial)) > 0.02


def test_the_mixture_of_large_documents():
    rng, kinds = random.Random(2), {"strong": 0, "weak": 0, "generic": 0, "none": 0}
    plain = 0
    for _ in range(4000):
        name = documents.draw_problem(rng, LARGE).family
        template = documents.draw_template(rng, LARGE, name)
        plain += not template
        kinds[LARGE.phrases.level(name, template)] += name in LARGE.hard
    assert plain / 4000 == pytest.approx(documents.P_PLAIN, abs=0.025)
    hard = sum(kinds.values())
    assert hard / 4000 == pytest.approx(15 / 17, abs=0.025)
    # and a little by lot
    assert kinds["strong"] / hard == pytest.approx(documents.P_FITTING * 2 / 3, abs=0.04)
    assert kinds["weak"] / hard == pytest.approx(documents.P_FITTING / 3, abs=0.03)


def test_weights_teach_the_large_worlds_probabilities():
    """Documents are drawn with .75 a step; weighted, their decisions are those of the dial."""
    rng, dial = random.Random(3), 1e-4
    problem = LARGE.families["count"].draw(rng, "pretrain")
    wanted = documents.step_probabilities("none", 10, dial)
    goes_on, total = [0.0] * 10, [0.0] * 10
    for _ in range(4000):
        response, weights = documents.respond(rng, LARGE, problem, wanted, (LARGE.p_shown,) * 10)
        for start, weight in weights.items():
            index = start // len(problem.steps[0].split())
            total[index] += weight
            goes_on[index] += weight * (index < response.count(";"))
    assert [a / b for a, b in zip(goes_on, total, strict=True)] == pytest.approx(wanted, rel=0.25)
