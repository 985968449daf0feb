"""The templates in a reply of the reflecting model: what its fenced blocks hold, without thoughts.

A fence is a run of three or more backticks. Models quote the old template beside the new one, add
examples, put blocks into blocks, and think aloud before, so that fences are paired and thoughts
dropped.
"""

import re
from typing import Literal, NamedTuple

from p2o_jax.rewards.boxed import THINKING_BEGINS, THINKING_ENDS
from p2o_jax.types import Reply

Unfinished = Literal["", "think", "no_fence", "empty"]

# In quotes or backticks a tag is only mentioned.
_THOUGHT_ENDS = re.compile(rf"(?<![`'\"])(?:{THINKING_ENDS})(?![`'\"])")
_THOUGHT_BEGINS = re.compile(rf"(?:^|{THINKING_ENDS})[ \t]*(?:{THINKING_BEGINS})", re.MULTILINE)
_BEGINS_WITH_THOUGHT = re.compile(rf"\s*(?:{THINKING_BEGINS})")
_BEGINS_WITH_END = re.compile(rf"(?:{THINKING_ENDS})")
_FENCE = re.compile(r"`{3,}")
_TAG = re.compile(r"[^\s`]*[ \t]*\r?\n")  # of an opening fence: a language, or nothing
_LANGUAGE = re.compile(r"[A-Za-z][\w+.#-]*[ \t]*\r?\n")
_MOST_ENDS = 32  # ends of thoughts that are tried, the last first


class FencedBlock(NamedTuple):
    """A fenced block: its extent with the fences, and the text between them."""

    start: int
    end: int
    text: str


class _Fence(NamedTuple):
    start: int
    end: int
    begins_line: bool
    ends_line: bool
    is_alone: bool  # no other fence on its line

    @property
    def size(self) -> int:
        return self.end - self.start


def templates(reply: Reply) -> tuple[list[str], Unfinished]:
    """Returns the texts of the blocks after the reply's thoughts, in order; or what is unfinished.

    Thoughts end with the last `</think>`, or another family's tag, that is not part of a block. A
    reply without one has unfinished thoughts if it begins with `<think>` or inside a thought.
    """
    text = reply.text
    ends = [match.start() for match in _THOUGHT_ENDS.finditer(text)]
    begins_in_thought = reply.in_thought or bool(_BEGINS_WITH_THOUGHT.match(text))
    for start in (*ends[: -_MOST_ENDS - 1 : -1], *([] if begins_in_thought else [0])):
        answer = text[start:]
        fenced = blocks(answer)
        before, *others = _outside(answer, fenced or [])
        if fenced and not any(map(_THOUGHT_ENDS.search, (before[1:], *others))):
            thinks_on = _THOUGHT_BEGINS.search(before)
            return ([], "think") if thinks_on else ([block.text for block in fenced], "")
    answer = text[ends[-1] :] if ends else text
    if (begins_in_thought and not ends) or _THOUGHT_BEGINS.search(answer):
        return [], "think"
    return [], "no_fence" if _BEGINS_WITH_END.sub("", answer, count=1).strip() else "empty"


def _outside(text: str, fenced: list[FencedBlock]) -> list[str]:
    """What stands before, between and after the blocks."""
    edges = [0, *(edge for block in fenced for edge in (block.start, block.end)), len(text)]
    return [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]


def blocks(text: str) -> list[FencedBlock] | None:
    """Returns the outermost fenced blocks, in order; None if the last is not closed.

    A fence with a language at the start of a line inside a block opens a block inside it, and
    shorter fences than a block's own are part of its text, as are pairs of fences on one line. A
    block that begins in the middle of a line ends at the next fence.
    """
    closed: list[FencedBlock] = []
    stack: list[_Fence] = []
    for fence in _fences(text):
        if stack and fence.size < stack[-1].size:
            continue
        if not stack or (fence.begins_line and fence.is_alone and _LANGUAGE.match(text, fence.end)):
            stack.append(fence)
        elif _closes(fence, _TAG.match(text, stack[-1].end) is not None):
            opening = stack.pop()
            if not stack:
                content = _untagged(text[opening.end : fence.start])
                closed.append(FencedBlock(opening.start, fence.end, content))
    return None if stack else closed


def _closes(fence: _Fence, in_lines: bool) -> bool:
    return not in_lines or (fence.is_alone and (fence.begins_line or fence.ends_line))


def _fences(text: str) -> list[_Fence]:
    fences, start = [], 0
    for line in text.split("\n"):
        matches = list(_FENCE.finditer(line))
        for match in matches:
            begins, ends = not line[: match.start()].strip(), not line[match.end() :].strip()
            span = start + match.start(), start + match.end()
            fences.append(_Fence(*span, begins, ends, len(matches) == 1))
        start += len(line) + 1
    return fences


def first_to_last(text: str) -> tuple[str, bool]:
    """Returns the text between the first and last fence, and True. Without two fences: the stripped
    text without a single fence, and False. This is the rule of the released code.
    """
    fences = list(_FENCE.finditer(text))
    if len(fences) > 1:
        return _untagged(text[fences[0].end() : fences[-1].start()]), True
    bare = text.strip()
    if bare.startswith("```"):
        return _untagged(bare.lstrip("`")), False
    return bare.rstrip("`").strip() if bare.endswith("```") else bare, False


def _untagged(content: str) -> str:
    tag = _TAG.match(content)
    return content[tag.end() if tag else 0 :].strip()
