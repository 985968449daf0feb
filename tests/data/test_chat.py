import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2o_jax import config
from p2o_jax.data.chat import Chat, load_tokenizer, templated
from p2o_jax.records import Question

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
MODELS = sorted(p.name for p in GOLDEN.iterdir())
TIED = GOLDEN / "qwen3_tied"


def ask(*contents, answer="1"):
    roles = {1: ["user"], 2: ["system", "user"], 3: ["user", "assistant", "user"]}[len(contents)]
    return Question("q", tuple({"role": r, "content": c} for r, c in zip(roles, contents, strict=True)), answer)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TIED)


@pytest.fixture(scope="module")
def chat(tokenizer):
    return Chat(tokenizer, config.Chat())


def edited(tmp_path, **files):
    """A copy of a golden model's tokenizer with JSON files changed (a dict: keys to set, None removes) or replaced (a text)."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json", "chat_template.jinja"):
        shutil.copy(TIED / name, tmp_path / name)
    for stem, change in files.items():
        path = tmp_path / (stem + (".jinja" if stem == "chat_template" else ".json"))
        if change is None:
            path.unlink()
        elif isinstance(change, str):
            path.write_text(change)
        else:
            values = json.loads(path.read_text()) | change
            path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return tmp_path


@pytest.mark.parametrize("model", MODELS)
def test_rendering_equals_golden(model):
    tokenizer = load_tokenizer(GOLDEN / model)
    golden = json.loads((GOLDEN / model / "chat.json").read_text())
    question = Question("q", tuple(golden["messages"]), "46")
    assert {r["kwargs"].get("enable_thinking", True) for r in golden["renderings"]} == {True, False}
    for rendering in golden["renderings"]:
        chat = Chat(tokenizer, config.Chat(enable_thinking=rendering["kwargs"].get("enable_thinking", True)))
        assert chat.prompt_text(question) == rendering["text"]
        assert chat.render(question) == tuple(rendering["ids"])


def test_template_stands_before_the_last_user_message(chat):
    question = ask("1?", "2!", "3?")
    before = "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n2!<|im_end|>\n"
    plain = before + "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert chat.prompt_text(question, " Think hard. \n") == plain.format("Think hard.\n\n3?")
    assert chat.prompt_text(question, " \n") == chat.prompt_text(question) == plain.format("3?")
    assert chat.render(question, " \n") == chat.render(question) == tuple(chat.tokenizer.encode(plain.format("3?")))
    assert question.text == "3?"


def test_render_text_is_a_lone_user_message(chat):
    assert chat.render_text("Hm?") == chat.render(ask("Hm?"))


def test_system_prompt_yields_to_the_questions_own(tokenizer):
    chat = Chat(tokenizer, config.Chat(system_prompt="Be brief."))
    assert chat.prompt_text(ask("1?")).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1?")
    assert chat.prompt_text(ask("Be long.", "1?")).startswith("<|im_start|>system\nBe long.<|im_end|>\n<|im_start|>user\n1?")


def test_own_template_overrides(tokenizer):
    chat = Chat(tokenizer, config.Chat(template="{% for m in messages %}Q: {{ m.content }}\n{% endfor %}A:"))
    assert chat.prompt_text(ask("1?"), "z") == "Q: z\n\n1?\nA:"


@pytest.mark.parametrize("template", ["{% for %}", "{{ raise_exception('no system role') }}", "{{ messages.x.y }}"])
def test_broken_template_is_refused_at_once(tokenizer, template):
    with pytest.raises(config.ConfigError, match=r"config\.chat\.template"):
        Chat(tokenizer, config.Chat(template=template))


def test_model_without_template_needs_one(tmp_path):
    tokenizer = load_tokenizer(edited(tmp_path, chat_template=None))
    with pytest.raises(config.ConfigError, match=r"config\.chat\.template.*no chat template"):
        Chat(tokenizer, config.Chat())
    assert Chat(tokenizer, config.Chat(template="{{ messages[0].content }}")).prompt_text(ask("1?")) == "1?"


def test_decode_skips_special_tokens_and_keeps_spaces(chat):
    text = "  a , b  .\n\n it 's √2"
    ids = [1, *chat.tokenizer.encode(text), 2, 0]
    assert chat.decode(ids) == text
    assert chat.decode(np.array(ids, np.int32)) == text
    assert chat.decode([]) == ""
    assert chat.decode([1_000_000, *ids]) == text  # the padding of a vocabulary is no token
    assert chat.count_tokens(text) == len(ids) - 3


def test_stop_ids_join_generation_config_tokenizer_and_end_of_turn(tmp_path):
    assert load_tokenizer(TIED).stop_ids == (2,)
    for value, stop_ids in [(7, (2, 7)), ([9, 7], (2, 7, 9)), ([], (2,))]:
        assert load_tokenizer(edited(tmp_path, generation_config={"eos_token_id": value})).stop_ids == stop_ids
    edited(tmp_path, generation_config=None, tokenizer_config={"eos_token": "<|endoftext|>"})
    assert load_tokenizer(tmp_path).stop_ids == (0, 2)  # <|im_end|> is a special token


def test_tokenizer_without_pad_token_pads_with_an_end(tmp_path):
    tokenizer = load_tokenizer(edited(tmp_path, tokenizer_config={"pad_token": None}))
    assert tokenizer.pad_id == 2
    assert load_tokenizer(TIED).pad_id == 0


def test_unusable_directories_are_named(tmp_path):
    with pytest.raises(config.ConfigError, match=r"config\.model\.path=.*no such directory"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(config.ConfigError, match=r"config\.model\.path=.*no tokenizer files"):
        load_tokenizer(tmp_path)
    with pytest.raises(config.ConfigError, match=r"config\.model\.path=.*cannot be loaded"):
        load_tokenizer(edited(tmp_path, tokenizer="{"))
    for broken in ("{", "[]", '{"eos_token_id": "x"}'):
        with pytest.raises(config.ConfigError, match=r"config\.model\.path"):
            load_tokenizer(edited(tmp_path, generation_config=broken))


def test_code_beside_a_tokenizer_is_never_run_nor_asked_about(tmp_path, monkeypatch):
    """With a tokenizer.json it is not needed; without one it is an error."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    auto_map = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizerFast"]}
    own = edited(tmp_path, tokenizer_config={"auto_map": auto_map, "tokenizer_class": "OwnTokenizerFast"})
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass OwnTokenizerFast: pass\n"
    (own / "tokenization_own.py").write_text(code)
    assert load_tokenizer(own).encode("1 + 1") == load_tokenizer(TIED).encode("1 + 1")
    (own / "tokenizer.json").unlink()
    values = json.loads((own / "config.json").read_text()) | {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (own / "config.json").write_text(json.dumps(values))
    with pytest.raises(config.ConfigError, match=r"config\.model\.path=.*cannot be loaded: it is code of its own"):
        load_tokenizer(own)
    assert not (tmp_path / "ran").exists()


def test_prompts_are_cached(chat, tokenizer, monkeypatch):
    first = chat.render(ask("once?"), "z")
    monkeypatch.setattr(tokenizer, "encode", None)
    assert chat.render(ask("once?"), " z ") is first


def test_questions_with_one_id_but_other_texts_do_not_meet_in_the_cache(chat):
    assert chat.render(ask("a?")) != chat.render(dataclasses.replace(ask("b?"), id="q"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.text(max_size=50), st.text(max_size=50))
def test_any_text_is_rendered(chat, template, text):
    ids = chat.render(ask(text), template)
    (last,) = templated(ask(text).messages, template)
    assert last["content"] == (f"{template.strip()}\n\n{text}" if template.strip() else text)
    assert ids == tuple(chat.tokenizer.encode(chat.prompt_text(ask(text), template)))
