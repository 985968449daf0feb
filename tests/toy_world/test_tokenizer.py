"""The tokenizer directory gives the very ids that the pretraining rows hold, and text comes back
as it went in.
"""

import random

import numpy as np
import pytest
from transformers import AutoTokenizer

from p2o_jax.toy_world import documents, packing, tokenizer
from p2o_jax.toy_world.languages import LARGE, SMALL


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.write_tokenizer(directory, SMALL)
    return AutoTokenizer.from_pretrained(directory)


def _documents(count: int) -> list[documents.Document]:
    rng = random.Random(0)
    return [
        draw(rng, SMALL, 1e-3)
        for _ in range(count)
        for draw in (documents.question_document, documents.reflection_document)
    ]


@pytest.mark.parametrize("language", [SMALL, LARGE])
def test_the_vocabulary_is_fixed_small_and_shardable(language):
    words = tokenizer.vocabulary(language)
    assert words == tokenizer.vocabulary(language)
    assert len(set(words)) == len(words)
    assert len(words) % 8 == 0 and len(words) <= 384


def test_special_tokens(loaded):
    assert len(loaded) == len(tokenizer.vocabulary(SMALL))
    assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == ("<pad>", "<eos>", "<unk>")
    assert loaded.convert_tokens_to_ids(list(tokenizer.vocabulary(SMALL))) == list(
        range(len(loaded))
    )


def test_the_chat_template_gives_a_documents_prompt_and_the_whole_document(loaded):
    ids = packing.ids_of_words(SMALL)
    for document in _documents(60):
        user = {"role": "user", "content": document.prompt}
        whole, weights = packing.encode(document, ids)
        prompt = loaded.apply_chat_template(
            [user], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert prompt == whole[: len(prompt)]
        assert (
            weights[len(prompt) - 1] == pytest.approx(packing.PROMPT_WEIGHT) and weights[-1] == 1.0
        )
        both = [user, {"role": "assistant", "content": document.response}]
        assert loaded.apply_chat_template(both, tokenize=True, return_dict=False) == whole
        rendered = loaded.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
        assert loaded(rendered, add_special_tokens=False)["input_ids"] == prompt


def test_responses_round_trip_and_nothing_is_unknown(loaded):
    for document in _documents(60):
        ids = loaded(document.response, add_special_tokens=False)["input_ids"]
        assert loaded.unk_token_id not in ids
        assert loaded.decode(ids) == document.response
        assert (
            loaded.decode([*ids, loaded.eos_token_id], skip_special_tokens=True)
            == document.response
        )
        assert (
            loaded.unk_token_id
            not in loaded(document.prompt, add_special_tokens=False)["input_ids"]
        )
    assert loaded.decode(loaded("\\boxed{ 9 5 0 }")["input_ids"]) == "\\boxed{ 9 5 0 }"


def test_a_templates_words_weigh_more_than_the_questions():
    document = documents.Document("be bold\n\ndouble 1 2 3 4 ?", "so \\boxed{ 2 4 6 8 }", {0: 1.9})
    _, weights = packing.encode(document, packing.ids_of_words(SMALL))
    # <user> is a row's or a segment's first token and never predicted
    assert weights == [0.2] * 3 + [0.03] * 8 + [1.9] + [1.0] * 7


def test_the_line_break_is_a_token_and_other_space_is_not(loaded):
    assert loaded.tokenize("be bold\n\nshift a ?") == ["be", "bold", "\n\n", "shift", "a", "?"]
    assert loaded.tokenize("be  bold \n shift") == ["be", "bold", "shift"]
    assert loaded.tokenize("be bold") == tokenizer.split("be bold") == ["be", "bold"]


def test_unknown_words_and_roles(loaded):
    assert loaded.tokenize("be zebra") == ["be", "<unk>"]
    with pytest.raises(Exception, match="no role system"):
        loaded.apply_chat_template([{"role": "system", "content": "be bold"}], tokenize=False)


def test_packed_rows_hold_whole_documents():
    rng = random.Random(5)
    drawn = []

    def draw() -> documents.Document:
        drawn.append(documents.question_document(rng, SMALL, 1e-3))
        return drawn[-1]

    packer, ids, seen = packing.Packer(4, 96, SMALL, draw), packing.ids_of_words(SMALL), []
    for _ in range(10):
        batch = packer.batch()
        assert (batch.segment_BT > 0).mean() > 0.8
        for row in range(4):
            for segment in range(1, batch.segment_BT[row].max() + 1):
                place = np.flatnonzero(batch.segment_BT[row] == segment)
                assert np.array_equal(batch.position_BT[row, place], np.arange(len(place)))
                seen.append(
                    (batch.token_BT[row, place].tolist(), batch.weight_BT[row, place].tolist())
                )
        padding = batch.segment_BT == 0
        assert not batch.token_BT[padding].any() and not batch.weight_BT[padding].any()
    wanted = [packing.encode(document, ids) for document in drawn]
    assert len(seen) == len(drawn) - len(packer.waiting)
    for token, weight in seen:
        match = next(w for t, w in wanted if t == token)
        assert weight == pytest.approx(match)


def test_a_document_longer_than_a_row_is_refused():
    packer = packing.Packer(2, 16, SMALL, lambda: documents.Document("be bold " * 10, "so"))
    with pytest.raises(ValueError, match="row_tokens=16"):
        packer.batch()
