r"""Extracts the final answer of a response from its last `\boxed{...}`.

`final_answer` is what the graders read. `last_boxed` is one box, without regard to anything else.
"""

import re

_COMMAND = r"\boxed"
_OPENING = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# Thinking, in the tags of several families. gpt-oss's are special tokens, of which the names stay.
_NAMES = "think|thinking|thought|thoughts|reasoning|seed:think"
THINKING_BEGINS = (
    rf"<(?:{_NAMES})>|\[THINK\]|◁think▷|<\|channel\|>analysis<\|message\|>|\Aanalysis(?=[A-Z])"
)
THINKING_ENDS = (
    rf"</(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>|assistantfinal"
)
_THINKING = re.compile(rf"(?P<open>{THINKING_BEGINS})|{THINKING_ENDS}")
# What may stand between the boxes of one statement: "x = \boxed{1}$ or $x = \boxed{2}".
_BETWEEN = re.compile(
    r"(?:[\s$,;&~*]|\\[,;:! ()\[\]]|\\q?quad(?![A-Za-z])|\\text ?\{[\s,]*(?:and|or)?[\s,]*\}"
    r"|\b(?:and|or)\b|(?:\\[A-Za-z]+|\b[A-Za-z]{1,2})(?:_\{?[A-Za-z0-9]\}?)?\s*=)*"
)
_MAX_BETWEEN = 60  # characters


def final_answer(response: str) -> str | None:
    r"""The content of the boxes of the last statement, joined by ", "; None if it has no box.

    Boxes belong to one statement if only separators, "and", "or" and "x =" stand between them; a
    box that repeats the one after it counts once. Only boxes after the thinking count.
    """
    text = after_thinking(response)
    if text is None:
        return None
    box = _last_box(text, len(text))
    if box is None or box[2] is None:
        return None
    contents = [box[2]]
    while previous := _last_box(text, box[0]):
        between = text[previous[1] : box[0]]
        if previous[2] is None or len(between) > _MAX_BETWEEN or not _BETWEEN.fullmatch(between):
            break
        if previous[2] and previous[2] != contents[-1]:
            contents.append(previous[2])
        box = previous
    return ", ".join(reversed(contents))


def after_thinking(response: str) -> str | None:
    """What a response says when it has thought; None while it is thinking.

    That is the text after the last `</think>`, or after another family's tag, and all of it without
    one. Where the chat template has opened the thinking, this cannot be seen before its end.
    """
    start, thinking = 0, False
    for tag in _THINKING.finditer(response):
        start, thinking = tag.end(), bool(tag["open"])
    return None if thinking else response[start:]


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`, stripped; None if there is none or it is not closed.

    Braces nest. Escaped braces (`\{`, `\}`) do not count, while `\\{` is a line break and a brace.
    As in the usual graders, an earlier box does not replace a last box that was never closed: such
    a response was cut off. `\boxed` without a brace, as in running text, is not a box, and neither
    is `\fbox`. Takes time linear in the length of the text.
    """
    box = _last_box(text, len(text))
    return box[2] if box else None


def _last_box(text: str, end: int) -> tuple[int, int, str | None] | None:
    r"""(start, end, content) of the last box that opens before `end`; None if there is none.

    The content is None if the box is not closed before `end`.
    """
    limit = end
    while (start := text.rfind(_COMMAND, 0, end)) >= 0:
        if opening := _OPENING.match(text, start, limit):
            closing = _closing(text, opening.end(), limit)
            if closing is None:
                return start, limit, None
            return start, closing + 1, text[opening.end() : closing].strip()
        end = start
    return None


def _closing(text: str, start: int, end: int) -> int | None:
    """Where the brace before `start` is closed, before `end`; None if it is not."""
    depth = 1
    for match in _BRACE.finditer(text, start, end):
        brace = match.group()
        if brace == "{":
            depth += 1
        elif brace == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None
