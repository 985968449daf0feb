r"""Extracts the final answer of a response: the content of its last `\boxed{...}`."""

import re

_COMMAND = r"\boxed"
_OPENING = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`, stripped; None if there is none or it is not closed.

    Braces nest. Escaped braces (`\{`, `\}`) do not count, while `\\{` is a line break and a brace.
    As in the usual graders, an earlier box does not replace a last box that was never closed: such
    a response was cut off. `\boxed` without a brace, as in running text, is not a box, and neither
    is `\fbox`. Takes time linear in the length of the text.
    """
    end = len(text)
    while (start := text.rfind(_COMMAND, 0, end)) >= 0:
        if opening := _OPENING.match(text, start, end):
            return _closed(text, opening.end())
        end = start
    return None


def _closed(text: str, start: int) -> str | None:
    """The text from `start` to the brace that closes the one before it; None if there is none."""
    depth = 1
    for match in _BRACE.finditer(text, start):
        brace = match.group()
        if brace == "{":
            depth += 1
        elif brace == "}":
            depth -= 1
            if depth == 0:
                return text[start : match.start()].strip()
    return None
