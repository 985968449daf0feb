"""Replies that become templates and replies that do not."""

import pytest
from gepa_toy import count_tokens, settings

from p2o_jax.gepa import filters
from p2o_jax.types import Reply

RECOMMENDED = settings(max_template_tokens=8)
FAITHFUL = settings("faithful")


def extract(reply, cfg=RECOMMENDED, taken=(), **kinds):
    return tuple(filters.extract(Reply(reply, **kinds), cfg, count_tokens, taken))


@pytest.mark.parametrize(
    "reply",
    [
        "``` a b c ```",
        "Here:\n```\na b c\n```\nGood luck.",
        "```text\na b c\n```",
        "```markdown \n\na b c\n\n```",
        "````md\r\na b c\n````",
    ],
)
def test_extract_takes_what_is_between_the_fences(reply):
    assert extract(reply) == ("a b c", "")
    assert extract(reply, FAITHFUL) == ("a b c", "")


def test_the_released_code_goes_from_the_first_fence_to_the_last():
    assert extract("``` a ``` and ``` b ```", FAITHFUL) == ("a ``` and ``` b", "")
    assert extract("``` a ``` and ``` b ```") == ("a", "")


def test_of_several_blocks_the_first_new_one_is_the_template():
    quoted = "The old one:\n```\nsum\nfirst\n```\nThe new one:\n```\nsum last\n```\nDone."
    assert extract(quoted, taken=("", "sum  first")) == ("sum last", "")
    assert extract(quoted) == ("sum\nfirst", "")
    assert extract("```\n```\n``` b ```", taken=("",)) == ("b", "")
    assert extract(quoted, taken=("sum last", "sum first")) == ("sum\nfirst", "duplicate")


def test_a_reply_that_ended_at_the_limit_is_rejected_for_that_where_it_is_incomplete():
    for reply in ("```\nThink step by", "<think> Hmm", "Let me see", ""):
        assert extract(reply, cut=True)[1] == "cut" != extract(reply)[1]
    assert extract("``` a ``` This one is", cut=True) == ("a", "")
    assert extract("Hmm, ``` a ``` may", cut=True, in_thought=True)[1] == "cut"
    assert extract("Hmm, ``` a ``` may", in_thought=True)[1] == "think"


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("Think step by step.", "no_fence"),
        ("```\nThink step by", "no_fence"),
        ("<think> Hmm, let me see", "think"),
        ("``` one two three four five six seven eight nine ```", "too_long"),
        ("```\nsum\n  first\n```", "duplicate"),
        ("```\n\n```", "empty"),
        ("", "empty"),
        (" \n", "empty"),
    ],
)
def test_planted_bad_replies_are_rejected(reply, problem):
    assert extract(reply, taken=("", "sum first"))[1] == problem


def test_a_template_that_spells_a_special_token_is_rejected():
    def spells(text):
        return "<|im_end|>" in text

    reply = Reply("``` Think.<|im_end|> ```")
    assert filters.extract(reply, RECOMMENDED, count_tokens, (), spells).problem == "special_token"
    assert filters.extract(reply, FAITHFUL, count_tokens, (), spells).problem == ""
    harmless = Reply("``` Think. ``` <|im_end|>")
    assert filters.extract(harmless, RECOMMENDED, count_tokens, (), spells).problem == ""


def test_the_released_code_rejects_only_empty_replies():
    assert extract("Think step by step.", FAITHFUL) == ("Think step by step.", "")
    assert extract("```\nThink step by", FAITHFUL) == ("Think step by", "")
    assert extract("Think step by\n```", FAITHFUL) == ("Think step by", "")
    assert extract("<think> Hmm ``` a ```", FAITHFUL) == ("a", "")
    assert extract("``` a ```", FAITHFUL, taken=("a",)) == ("a", "")
    for reply in ("", "``` ```", "```", "``````"):
        assert extract(reply, FAITHFUL) == ("", "empty")
