"""Rows for supervised training: both kinds, and every way to get them wrong."""

import json
from pathlib import Path

import pytest

from p2o_jax import config
from p2o_jax.config import ConfigError
from p2o_jax.data import sft_rows
from p2o_jax.data.chat import Chat, Tokenizer, load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden/hf"
DATA = config.DataConfig(prompt_template="{question}")
USER, ASSISTANT = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is 2."}


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path: Path, rows, cfg: config.DataConfig = DATA):
    return sft_rows.load(write(path, rows), cfg, "messages")


def test_questions_with_answers_and_chats(tmp_path):
    chat = {"messages": [{"role": "system", "content": "Be brief."}, USER, ASSISTANT], "level": 3}
    rows = load(tmp_path / "rows.jsonl", [{"question": "1+1?", "answer": "It is 2."}, chat, chat])
    first, second, third = rows.questions
    assert first.messages == (USER,) and first.answer == second.answer == "It is 2."
    assert [m["role"] for m in second.messages] == ["system", "user"] and second.meta["level"] == 3
    assert second.id != third.id, "equal rows are both trained on"
    assert rows.lines == (1, 2, 3) and rows.notices == []


def test_the_response_ends_with_the_token_that_ends_a_turn():
    """Of several stop tokens the one of the chat template; the first where it has none."""
    one = load_tokenizer(GOLDEN / "qwen3_tied")
    end = one.stop_ids[0]
    several = Tokenizer(one.hf, eos_ids=[end - 1])
    assert several.stop_ids == (end - 1, end)
    for template, expected in (("", end), ("{{ messages[-1]['content'] }}", end - 1)):
        chat = Chat(several, config.ChatConfig(template=template), "2026-01-01")
        assert chat.end_of_turn == expected


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"messages": [USER]}, "messages: the last message must be the assistant's"),
        ({"messages": []}, "messages: the last message must be the assistant's"),
        ({"messages": "text"}, "messages: expected a list of messages, got str"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages: the last message has no text"),
        ({"messages": [ASSISTANT]}, "the last message must be the user's"),
        ({"question": "1+1?"}, 'no field "answer"'),
        ({"question": "1+1?", "answer": " "}, "answer: empty"),
        ({"text": "1+1?"}, 'no field "question"'),
    ],
)
def test_bad_rows_are_reported_together_with_their_lines(tmp_path, row, rule):
    good = {"messages": [USER, ASSISTANT]}
    with pytest.raises(ConfigError) as e:
        load(tmp_path / "rows.jsonl", [good, row, good, row])
    second, *fourth = e.value.problems
    assert rule in second and "rows.jsonl:2: " in second
    if "no field" in rule:
        assert second.endswith("; 1 more like it") and not fourth
    else:
        assert "rows.jsonl:4: " in fourth[0]


def test_held_out_sets_have_names(tmp_path):
    rows = [{"messages": [USER, ASSISTANT]}]
    paths = [write(tmp_path / f"{name}.jsonl", rows) for name in "ab"]
    sets = sft_rows.load_sets(f"{paths[0]},second={paths[1]}", DATA, "messages")
    assert [part.name for part in sets] == ["a", "second"]
    assert sft_rows.load_sets("", DATA, "messages") == []
    with pytest.raises(ConfigError) as e:
        sft_rows.load_sets("none.jsonl,other.jsonl", DATA, "messages")
    assert len(e.value.problems) == 2
