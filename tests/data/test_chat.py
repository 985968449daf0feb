import dataclasses
import datetime
import gc
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2o_jax import config
from p2o_jax.data import chat_template
from p2o_jax.data.chat import Chat, load_tokenizer, templated
from p2o_jax.types import Question

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
MODELS = sorted(path.parent.name for path in GOLDEN.glob("*/chat.json"))
TIED = GOLDEN / "qwen3_tied"


def ask(*contents, answer="1"):
    roles = {1: ["user"], 2: ["system", "user"], 3: ["user", "assistant", "user"]}[len(contents)]
    return Question(
        "q", tuple({"role": r, "content": c} for r, c in zip(roles, contents, strict=True)), answer
    )


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TIED)


@pytest.fixture(scope="module")
def chat(tokenizer):
    return Chat(tokenizer, config.ChatConfig())


def edited(tmp_path, **files):
    """A copy of a golden model's tokenizer with JSON files changed (a dict: keys to set, None
    removes) or replaced (a text).
    """
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "config.json",
        "chat_template.jinja",
    ):
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
        chat = Chat(
            tokenizer,
            config.ChatConfig(enable_thinking=rendering["kwargs"].get("enable_thinking", True)),
        )
        assert chat.prompt_text(question) == rendering["text"]
        assert chat.render(question) == tuple(rendering["ids"])


def test_a_prompt_that_ends_inside_a_thought_is_noticed(tokenizer):
    assert not Chat(tokenizer, config.ChatConfig()).opens_thought  # <think></think>
    assert not Chat(tokenizer, config.ChatConfig(enable_thinking=True)).opens_thought
    bare = "{{ messages[0]['content'] }} A: "
    for opening, expected in (("<think>\n", True), ("<think></think>", False), ("", False)):
        chat = Chat(tokenizer, config.ChatConfig(template=bare + opening))
        assert chat.opens_thought is expected, opening
    assert not Chat(tokenizer, config.ChatConfig(template="<think>" + bare)).opens_thought


def test_replies_keep_the_tags_of_thoughts(chat):
    text = "<think>\nHm 3 </think>\n``` a ```"
    ids = chat.tokenizer.encode(text + "<|im_end|>")
    assert "</think>" in chat.tokenizer.special_tokens  # which `decode` drops
    assert chat.decode_thoughts(ids) == text != chat.decode(ids)
    assert chat.decode_thoughts([]) == ""


def test_template_stands_before_the_last_user_message(chat):
    question = ask("1?", "2!", "3?")
    before = "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n2!<|im_end|>\n"
    plain = (
        before + "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert chat.prompt_text(question, " Think hard. \n") == plain.format("Think hard.\n\n3?")
    assert chat.prompt_text(question, " \n") == chat.prompt_text(question) == plain.format("3?")
    assert (
        chat.render(question, " \n")
        == chat.render(question)
        == tuple(chat.tokenizer.encode(plain.format("3?")))
    )
    assert question.text == "3?"


def test_render_text_is_a_lone_user_message(chat):
    assert chat.render_text("Hm?") == chat.render(ask("Hm?"))


def test_system_prompt_yields_to_the_questions_own(tokenizer):
    chat = Chat(tokenizer, config.ChatConfig(system_prompt="Be brief."))
    assert chat.prompt_text(ask("1?")).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1?"
    )
    assert chat.prompt_text(ask("Be long.", "1?")).startswith(
        "<|im_start|>system\nBe long.<|im_end|>\n<|im_start|>user\n1?"
    )


def test_own_template_overrides(tokenizer):
    chat = Chat(
        tokenizer,
        config.ChatConfig(template="{% for m in messages %}Q: {{ m.content }}\n{% endfor %}A:"),
    )
    assert chat.prompt_text(ask("1?"), "z") == "Q: z\n\n1?\nA:"


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ raise_exception('no system role') }}", "{{ messages.x.y }}"]
)
def test_broken_template_is_refused_at_once(tokenizer, template):
    with pytest.raises(config.ConfigError, match=r"config\.chat\.template"):
        Chat(tokenizer, config.ChatConfig(template=template))


def test_model_without_template_needs_one(tmp_path):
    tokenizer = load_tokenizer(edited(tmp_path, chat_template=None))
    with pytest.raises(config.ConfigError, match=r"config\.chat\.template.*no chat template"):
        Chat(tokenizer, config.ChatConfig())
    assert (
        Chat(tokenizer, config.ChatConfig(template="{{ messages[0].content }}")).prompt_text(
            ask("1?")
        )
        == "1?"
    )


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
        assert (
            load_tokenizer(edited(tmp_path, generation_config={"eos_token_id": value})).stop_ids
            == stop_ids
        )
    edited(tmp_path, generation_config=None, tokenizer_config={"eos_token": "<|endoftext|>"})
    assert load_tokenizer(tmp_path).stop_ids == (0, 2)  # <|im_end|> is a special token
    for value, stop_ids in [([5, 6], (0, 2, 5, 6)), (7, (0, 2, 7)), (None, (0, 2))]:
        assert (
            load_tokenizer(
                edited(
                    tmp_path, config={"eos_token_id": value}, generation_config={"eos_token_id": 0}
                )
            ).stop_ids
            == stop_ids
        )


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
    own = edited(
        tmp_path, tokenizer_config={"auto_map": auto_map, "tokenizer_class": "OwnTokenizerFast"}
    )
    code = (
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass OwnTokenizerFast:"
        " pass\n"
    )
    (own / "tokenization_own.py").write_text(code)
    assert load_tokenizer(own).encode("1 + 1") == load_tokenizer(TIED).encode("1 + 1")
    (own / "tokenizer.json").unlink()
    values = json.loads((own / "config.json").read_text()) | {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config"},
    }
    (own / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        config.ConfigError, match=r"config\.model\.path=.*cannot be loaded: it needs custom code"
    ):
        load_tokenizer(own)
    assert not (tmp_path / "ran").exists()


def test_prompts_are_cached(chat, tokenizer, monkeypatch):
    first = chat.render(ask("once?"), "z")
    monkeypatch.setattr(tokenizer, "encode", None)
    assert chat.render(ask("once?"), " z ") is first


def test_questions_with_one_id_but_other_texts_do_not_meet_in_the_cache(chat):
    assert chat.render(ask("a?")) != chat.render(dataclasses.replace(ask("b?"), id="q"))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None
)
@given(st.text(max_size=50), st.text(max_size=50))
def test_any_text_is_rendered(chat, template, text):
    ids = chat.render(ask(text), template)
    (last,) = templated(ask(text).messages, template)
    assert last["content"] == (f"{template.strip()}\n\n{text}" if template.strip() else text)
    assert ids == tuple(chat.tokenizer.encode(chat.prompt_text(ask(text), template)))


LLAMA3 = (
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- set date_string ="
    " strftime_now('%d %b %Y') %}\n{%- endif %}\n{%- if messages[0]['role'] == 'system' %}\n    {%-"
    " set system_message = messages[0]['content'] | trim %}\n    {%- set messages = messages[1:]"
    " %}\n{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n{{-"
    " '<|im_start|>system\\n\\nToday Date: ' + date_string + '\\n\\n' + system_message +"
    " '<|im_end|>' }}\n{%- for message in messages %}\n    {{- '<|im_start|>' + message['role'] +"
    " '\\n\\n' + message['content'] | trim + '<|im_end|>' }}\n{%- endfor %}\n{%- if"
    " add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n\\n' }}\n{%- endif %}\n"
)
OTHERS = (  # what real templates use beside plain loops
    (
        "{% set ns = namespace(n=0, user=none) %}{% for m in messages %}{% if m.role == 'system'"
        " %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{% set ns.user = m.content %}{%"
        " endfor %}{{ ns.n }}{{ ns.user }}"
    ),
    (
        "{% for m in messages %}{% generation %}{% set c = m.content %}{{ c }}{% endgeneration %}{{"
        " loop.index }}{% endfor %}"
    ),
    (
        "{{ messages | tojson(indent=2) }}{{ {'é': '<'} | tojson }}{{ dict(a=1).a }}{{ eos_token"
        " }}{{ tools }}{{ documents }}"
    ),
    (
        "{%- macro turn(m) %}{{ m.role[:1].upper() ~ m.content.split('</think>')[-1].lstrip('\\n')"
        " }}{% endmacro %}\n    {% for m in messages[::-1] %}\n  {{ turn(m) }}\n{% endfor %}\n{% if"
        " enable_thinking is true %}t{% endif %}\n\n"
    ),
)


@pytest.mark.parametrize("template", (LLAMA3, *OTHERS))
def test_templates_render_as_in_transformers(tokenizer, template):
    question = ask("  Be <brief>. ", "1 é?\n")
    for thinking in (False, True):
        chat = Chat(tokenizer, config.ChatConfig(template=template, enable_thinking=thinking))
        expected = tokenizer.hf.apply_chat_template(
            list(question.messages),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        assert chat.prompt_text(question) == expected


def test_the_date_in_a_template_is_the_given_one(tokenizer):
    chat = Chat(tokenizer, config.ChatConfig(template=LLAMA3), "2024-02-29")
    assert "Today Date: 29 Feb 2024\n" in chat.prompt_text(ask("1?"))
    assert (
        Chat(tokenizer, config.ChatConfig(template=LLAMA3)).date
        == datetime.date.today().isoformat()
    )


def test_a_template_chooses_the_same_at_random_every_time(tokenizer):
    template = "{{ range(1000) | random }} {{ range(1000) | random }} {{ messages[0].content }}"
    first, second = (Chat(tokenizer, config.ChatConfig(template=template)) for _ in range(2))
    assert (
        first.prompt_text(ask("1?"))
        == first.prompt_text(ask("1?"))
        == second.prompt_text(ask("1?"))
    )


LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (LOOPS, "processor time"),
        ("{{ 9 ** (9 ** 9) }}", "processor time"),  # computed while the template is compiled
        ("{% set n = messages | length + 8 %}{{ n ** (n ** n) }}", "processor time"),
        ("{{ 'x' * 10 ** 10 }}", "memory"),
        (
            "{{ '%999999999999d' | format(1) }}{{ 'x' | center(10 ** 10) }}",
            "memory|OverflowError|ValueError",
        ),
        (
            (
                "{% set ns = namespace(x='ab') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x"
                " %}{% endfor %}"
            ),
            "memory",
        ),
        ("{% for a in range(50) %}{{ 'x' * 1000000 }}{% endfor %}", "50,000,000 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% set ns = namespace(_x=1) %}", "no name '_x'"),
    ],
)
def test_a_hostile_template_is_refused_within_seconds(tokenizer, template, reason, monkeypatch):
    monkeypatch.setattr(chat_template, "CPU_S", 0)
    monkeypatch.setattr(chat_template, "MEMORY_BYTES", 1 << 28)
    start = time.monotonic()
    with pytest.raises(config.ConfigError, match=rf"config\.chat\.template: .*({reason})"):
        Chat(tokenizer, config.ChatConfig(template=template))
    assert time.monotonic() - start < 60  # one second each; the machine may be busy


def test_a_template_that_hangs_on_one_question_only_is_refused_there(tokenizer, monkeypatch):
    monkeypatch.setattr(chat_template, "CPU_S", 0)
    chat = Chat(
        tokenizer,
        config.ChatConfig(
            template="{% if 'bomb' in messages[0].content %}"
            + LOOPS
            + "{% endif %}{{ messages[0].content }}"
        ),
    )
    with pytest.raises(config.ConfigError, match="more than 0 s of processor time"):
        chat.render(ask("a bomb"))
    assert chat.prompt_text(ask("1?")) == "1?"


def worker_of(chat):
    return chat._template._workers[0]._process


def test_the_process_of_a_template_has_no_keys_and_ends_with_its_chat(tokenizer, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "secret")
    chat = Chat(tokenizer, config.ChatConfig(template="{{ messages[0].content }}"))
    process = worker_of(chat)
    assert b"SOME_API_KEY" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    del chat
    gc.collect()
    assert process.poll() is not None


def test_a_killed_process_is_restarted_and_an_interrupted_one_does_not_answer_late(
    tokenizer, monkeypatch
):
    chat = Chat(tokenizer, config.ChatConfig(template="{{ messages[0].content }}"))
    worker_of(chat).kill()
    assert chat.prompt_text(ask("1?")) == "1?"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(chat._template._workers[0]._connection, "poll", interrupt, raising=False)
        with pytest.raises(KeyboardInterrupt):
            chat.prompt_text(ask("2?"))
    assert chat.prompt_text(ask("3?")) == "3?"


def with_bos(tmp_path, **files):
    """The golden tokenizer, which puts <|im_start|> before every text."""
    tokenizer = json.loads((TIED / "tokenizer.json").read_text())
    bos = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    tokenizer["post_processor"]["single"].insert(0, bos)
    tokenizer["post_processor"]["special_tokens"] = {
        "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
    }
    return load_tokenizer(edited(tmp_path, tokenizer=tokenizer, **files))


def suggested(tokenizer):
    with pytest.raises(config.ConfigError) as e:
        Chat(tokenizer, config.ChatConfig())
    return (
        e.value.problems[0].partition("For a base model ")[2].removesuffix(" renders the bare text")
    )


@pytest.mark.parametrize("bos", ["<|im_start|>", None])
def test_the_template_suggested_for_base_models_gives_the_ids_of_transformers(tmp_path, bos):
    tokenizer = with_bos(tmp_path, chat_template=None, tokenizer_config={"bos_token": bos})
    assert tokenizer.prefix_ids == (1,)
    template = suggested(tokenizer)
    assert template.startswith("{{ bos_token }}" if bos else "<|im_start|>")
    chat = Chat(tokenizer, config.ChatConfig(template=template))
    assert chat.render(ask("What is 1 + 1?")) == tuple(tokenizer.hf("What is 1 + 1?").input_ids)
    assert chat.prompt_text(ask("Be brief.", "1?")) == "<|im_start|>Be brief.\n1?"
    assert chat.notices == ()


def test_the_suggested_template_of_a_tokenizer_without_bos(tmp_path):
    tokenizer = load_tokenizer(edited(tmp_path, chat_template=None))
    assert suggested(tokenizer) == r"{{ messages | map(attribute='content') | join('\n') }}"
    assert Chat(tokenizer, config.ChatConfig(template=suggested(tokenizer))).render_text(
        "1?"
    ) == tuple(tokenizer.hf("1?").input_ids)


def test_a_bos_that_is_missing_or_doubled_is_noticed(tmp_path):
    tokenizer = with_bos(tmp_path, tokenizer_config={"bos_token": "<|im_start|>"})
    # the model's own template, which begins with it
    assert Chat(tokenizer, config.ChatConfig()).notices == ()
    (missing,) = Chat(tokenizer, config.ChatConfig(template="{{ messages[0].content }}")).notices
    assert "do not begin with <|im_start|>" in missing and "{{ bos_token }}" in missing
    (doubled,) = Chat(
        tokenizer,
        config.ChatConfig(template="{{ bos_token }}<|im_start|>{{ messages[0].content }}"),
    ).notices
    assert doubled.endswith("begin with <|im_start|> twice")
