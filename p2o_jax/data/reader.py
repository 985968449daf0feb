"""From the records of a source to questions, and notices of how they were read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from p2o_jax import config
from p2o_jax.data import answers, layouts
from p2o_jax.types import Message, Question, question_id

QUESTION = "{question}"  # the placeholder in config.data.prompt_template
ROLES = ("system", "user", "assistant")


class Reader:
    """Makes questions of records, and counts layouts and converted answers.

    Args:
        source: the name of the source.
        cfg: the columns, the prompt template, and whether answers are converted.
        scorer: `Question.scorer` of the questions, which then need no answer.
        hint_field: the column of `Question.hint`; empty: there are none.
    """

    def __init__(self, source: str, cfg: config.DataConfig, scorer: str = "", hint_field: str = ""):
        self.source, self.cfg, self.scorer, self.hint_field = source, cfg, scorer, hint_field
        self._layouts: Counter[layouts.Layout] = Counter()
        self._converted: Counter[str] = Counter()

    def question(self, record: layouts.Record) -> Question | str:
        """The question of a record, or the record's problem."""
        fields = layouts.fields(record, self.cfg)
        if isinstance(fields, str):
            return fields
        layout = fields.layout
        try:
            messages = chat_messages(fields.question, self.cfg.prompt_template)
        except ValueError as e:
            return f"{layout.question}: {e}"
        answer = ""
        if layout.answer and not (self.scorer and fields.answer is None):
            try:
                answer = self._answer(fields.answer)
            except ValueError as e:
                return f"{layout.answer}: {e}"
        try:
            hint = layouts.hint(record, self.hint_field) if self.hint_field else ""
        except ValueError as e:
            return f"{self.hint_field}: {e}"
        if isinstance(hint, layouts.MissingColumn):
            return hint
        self._layouts[layout] += 1
        name = question_id(messages)
        return Question(name, messages, answer, self.source, fields.rest, self.scorer, hint)

    def notices(self, path: str) -> list[str]:
        """A line for each layout that was recognised, and one for the answers converted."""
        lines = [
            f"{path}: {count:,} record{'s' * (count > 1)} read in the layout {layout.name}:"
            f' question from "{layout.question}"'
            + (f', answer from "{layout.answer}"' if layout.answer else "")
            for layout, count in self._layouts.items()
            if layout.name
        ]
        if self._converted:
            counts = ", ".join(f"{count:,} {where}" for where, count in self._converted.items())
            lines.append(
                f"{path}: {self._converted.total():,} reference answers are solutions; their final"
                f" answers are used: {counts} (config.data.answers)"
            )
        return lines

    def _answer(self, value: Any) -> str:
        form = "raw" if self.scorer else self.cfg.answers
        text, where = answers.as_reference(value, form)
        if where:
            self._converted[where] += 1
        return text


def chat_messages(value: Any, prompt_template: str) -> tuple[Message, ...]:
    """The chat messages of a question: a text in the prompt template, or a list of messages.

    Raises:
        ValueError: the rule that the value breaks.
    """
    if value is None:
        raise ValueError("missing")
    if isinstance(value, str):
        answers.check_text(value)
        return ({"role": "user", "content": fill(prompt_template, value)},)
    if not isinstance(value, Sequence):
        kind = "an object" if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"expected a text or a list of messages, got {kind}")
    messages = []
    for number, message in enumerate(value, 1):
        if (
            not isinstance(message, Mapping)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            rule = f'expected {{"role": {"|".join(ROLES)}, "content": text}}'
            raise ValueError(f"message {number}: {rule}")
        try:
            answers.check_text(message["content"])
        except ValueError as e:
            raise ValueError(f"message {number}: {e}") from e
        messages.append({"role": message["role"], "content": message["content"]})
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("the last message must be the user's")
    return tuple(messages)


def fill(prompt_template: str, question: str) -> str:
    """Replaces the placeholder of the template by the question; other braces are kept."""
    before, _, after = prompt_template.partition(QUESTION)
    return before + question + after
