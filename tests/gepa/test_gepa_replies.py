"""Thoughts and fences in replies of reflecting models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o_jax.gepa import replies
from p2o_jax.types import Reply

DRAFT = "Perhaps\n```\na draft\n```\nNo, better"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nHmm.\n</think>\n\n```\nBe careful.\n```", ["Be careful."]),
        (f"<think>{DRAFT}</think>\n```\nBe careful.\n```", ["Be careful."]),
        # the chat template opened the thought, and only its end is part of the reply
        (f"Okay. {DRAFT}\n</think>\n```\nBe careful.\n```", ["Be careful."]),
        # the tags of other families
        (f"[THINK]{DRAFT}[/THINK]\n```\nBe careful.\n```", ["Be careful."]),
        (f"<seed:think>{DRAFT}</seed:think>\n```\nBe careful.\n```", ["Be careful."]),
        (f"analysisWe need {DRAFT}assistantfinal\n```\nBe careful.\n```", ["Be careful."]),
        # an unclosed draft, and tags that are mentioned in thoughts
        ("<think>```\ndraft </think>\n```\nBe careful.\n```", ["Be careful."]),
        ("<think>Should I say `</think>`?</think>\n```\nBe careful.\n```", ["Be careful."]),
        ("<think>a</think> So: <think>b</think>\n```\nBe careful.\n```", ["Be careful."]),
        # templates that mention thoughts
        ("```\nThink in <think> first.\n```", ["Think in <think> first."]),
        ("```\nUse <think> and </think>.\n```\nDone.", ["Use <think> and </think>."]),
        ("<think>Hm</think>\n```\nClose </think> early.\n```", ["Close </think> early."]),
        ("<think>Hm</think>\n```\nUse </think>.\n```\n```\nb\n```", ["Use </think>.", "b"]),
        ("It lacks <think> tags:\n```\nUse <think>.\n```", ["Use <think>."]),
    ],
)
def test_thoughts_are_dropped_and_mentions_of_them_are_not(text, expected):
    assert replies.templates(Reply(text)) == (expected, "")


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (Reply(f"<think>{DRAFT}"), "think"),
        (Reply(f" \n<think>{DRAFT}"), "think"),
        (Reply(f"[THINK]{DRAFT}"), "think"),
        (Reply("[THINK]a[/THINK] \n"), "empty"),
        (Reply(f"Sure.\n<think>\n{DRAFT}"), "think"),
        (Reply(f"<think>a</think>\n<think>{DRAFT}"), "think"),
        (Reply(f"<think>a</think> <think>{DRAFT}"), "think"),
        (Reply(DRAFT, in_thought=True), "think"),
        (Reply("Try\n```\nUse </think> tags\n```\nor", in_thought=True), "no_fence"),
        (Reply(f"{DRAFT}</think>\nBe careful."), "no_fence"),
        (Reply("<think>a</think>\n```\nBe"), "no_fence"),
        (Reply("<think>a</think> \n"), "empty"),
        (Reply(""), "empty"),
    ],
)
def test_unfinished_thoughts_and_thoughts_alone_have_no_template(reply, problem):
    assert replies.templates(reply) == ([], problem)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # a fenced example after the template; the old template before the new one
        ("```\nnew\n```\nFor example:\n```\n2 + 2\n```\n", ["new", "2 + 2"]),
        ("```text\nold\n```\n\n```text\nnew\n```", ["old", "new"]),
        # blocks inside the template
        ("```\na\n```python\nb\n```\nc\n```", ["a\n```python\nb\n```\nc"]),
        ("````\na\n```\nb\n```\nc\n````", ["a\n```\nb\n```\nc"]),
        ("```md\na\n```js\nb\n```\n```c\nd\n```\n```", ["a\n```js\nb\n```\n```c\nd\n```"]),
        ("```\nPut code in ```code``` fences.\n```", ["Put code in ```code``` fences."]),
        ("```\n```code``` is code.\n```", ["```code``` is code."]),
        # closed at the end of a line, or on the line where it was opened
        ("```\nBe careful.```\nDone.", ["Be careful."]),
        ("``` a ``` and ``` b ```", ["a", "b"]),
        ("```Be very\ncareful.\n```", ["Be very\ncareful."]),
        # cut off after an inner block, after an example has begun, in a fence
        ("```\na\n```python\nb\n```\nc", []),
        ("```\na\n```\nb\n```\nc", []),
        ("```\na\n``", []),
        ("no fence", []),
    ],
)
def test_fences_are_paired(text, expected):
    assert replies.templates(Reply(text))[0] == expected


@given(st.text(alphabet="`\n a<think>/", max_size=60))
def test_blocks_lie_in_the_text_in_order_with_their_extent(text):
    ends = [0]
    for block in replies.blocks(text) or []:
        assert ends[-1] <= block.start < block.end <= len(text)
        assert text[block.start : block.end].startswith("```")
        assert text[: block.end].endswith("```") and block.text in text[block.start : block.end]
        ends.append(block.end)


def test_a_reply_of_many_tags_takes_no_time():
    assert replies.templates(Reply("<think></think>``` a\n" * 30_000))[0] == []
    mentions = "``` </think> ```\n" * 30_000
    assert len(replies.templates(Reply(mentions))[0]) == 30_000
