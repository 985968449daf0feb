"""The text that all questions of a run share: the prompt around them, and what a task repeats."""

import os
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

QUESTION = "{question}"  # in config.data.prompt_template
MIN_CHARS = 20  # of a shared beginning or end that is not the template's
MIN_TEXTS = 3
_SENTENCE = re.compile(r"\n|[.:!?](?=\s)")  # after which a shared beginning may end


class SharedText(NamedTuple):
    """What stands before and after every question; either may be empty."""

    before: str = ""
    after: str = ""

    def without(self, text: str) -> str:
        """The text without what is shared; unchanged if it does not have it, or nothing else."""
        if not text.startswith(self.before) or not text.endswith(self.after):
            return text
        return text[len(self.before) : len(text) - len(self.after)].strip() or text


def shared_text(texts: Collection[str], prompt_template: str) -> SharedText:
    """What all of the texts begin and end with: the prompt template, and whole sentences."""
    distinct = sorted(set(texts))
    before, _, after = prompt_template.partition(QUESTION)
    template = SharedText(before, after)
    if any(not t.startswith(before) or not t.endswith(after) for t in distinct):
        template = SharedText()
    inner = [text[len(template.before) : len(text) - len(template.after)] for text in distinct]
    if len(inner) < MIN_TEXTS:
        return template
    begin = _beginning(inner)
    end = _end([text[len(begin) :] for text in inner])
    return SharedText(template.before + begin, end + template.after)


def _beginning(texts: Sequence[str]) -> str:
    """The whole sentences that all of the texts begin with."""
    common = os.path.commonprefix(list(texts))
    ends = [match.end() for match in _SENTENCE.finditer(common)]
    sentences = common[: max(ends, default=0)]
    return sentences if len(sentences) >= MIN_CHARS else ""


def _end(texts: Sequence[str]) -> str:
    """The whole sentences that all of the texts end with."""
    common = os.path.commonprefix([text[::-1] for text in texts])[::-1]
    for start in range(len(common) - MIN_CHARS + 1):
        place = len(common) - start
        if common[start].isspace() and all(_SENTENCE.match(t, len(t) - place - 1) for t in texts):
            return common[start:]
    return ""
