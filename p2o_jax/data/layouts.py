"""The columns of a record: those that the config names, or those of a well-known layout.

A layout is recognised where a column that `config.data.question_field` or `answer_field` names is
missing, and the setting has its default.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from p2o_jax import config
from p2o_jax.data import answers

Record = Mapping[str, Any]

QUESTIONS = ("question", "problem", "Question", "Problem", "prompt", "query", "instruction")
ANSWERS = (
    "answer",
    "final_answer",
    "Answer",
    "expected_answer",
    "ground_truth",
    "reward_model.ground_truth",
    "solution",
    "target",
    "completion",
    "output",
    "response",
)
CHAT = "chat messages"
_DEFAULT = config.DataConfig()
_NESTED = 3  # levels of columns that are named in messages


class Layout(NamedTuple):
    """Where question and answer stand, by column or by field inside one: `a.b`.

    Attributes:
        name: of a well-known layout; "" for the columns that the config names.
        question: path of the question.
        answer: path of the reference answer; "" if there is none. The same as `question` in a chat
            whose last message is the answer.
        marks: further columns by which the layout is recognised.
    """

    name: str
    question: str
    answer: str
    marks: tuple[str, ...] = ()


LAYOUTS = (
    Layout("verl", "prompt", "reward_model.ground_truth"),
    Layout("open-r1", "problem", "answer", ("generations",)),
    Layout("open-r1", "problem", "solution", ("messages",)),
    Layout("MATH-500", "problem", "answer", ("solution", "level")),
    Layout("DeepScaleR", "problem", "answer", ("solution",)),
    Layout("MATH", "problem", "solution", ("level", "type")),
    *(Layout("TRL", "prompt", name) for name in ("solution", "answer", "ground_truth")),
    Layout("TRL", "prompt", "completion"),
    *(Layout("other names", question, answer) for question in QUESTIONS for answer in ANSWERS),
    Layout(CHAT, "messages", "answer"),
    Layout(CHAT, "messages", "messages"),
)


class MissingColumn(str):
    """A problem with columns, which all records with the same columns share."""


class QuestionFields(NamedTuple):
    """The values of a record, and the layout in which they stood."""

    question: Any
    answer: Any
    rest: Record
    layout: Layout


def fields(record: Record, cfg: config.DataConfig) -> QuestionFields | str:
    """The fields of a record, or its problem."""
    layout = _layout(record, cfg)
    if isinstance(layout, str):
        return layout
    question = lookup(record, layout.question)
    answer = lookup(record, layout.answer) if layout.answer else ""
    used = (layout.question, layout.answer)
    rest = {str(key): value for key, value in record.items() if key not in used}
    if layout.name == CHAT:
        is_answered = _is_answered(question)
        if layout.answer == layout.question:
            if not is_answered:
                return f"{layout.question}: the last message must be the assistant's"
            answer = question[-1].get("content")
        question = question[:-1] if is_answered else question
    return QuestionFields(question, answer, rest, layout)


def hint(record: Record, path: str) -> str | MissingColumn:
    """The hint in a column, or that there is no such column. A blank hint is empty, and so is null.

    Raises:
        ValueError: the rule that the value breaks.
    """
    if not _exists(record, path):
        columns = list(_paths(record))
        problem = _no_field("hint_field", path, ("hint", "hints"), columns)
        return MissingColumn(f"{problem}; it has {', '.join(columns)}")
    value = lookup(record, path)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {type(value).__name__}")
    if value.strip():
        answers.check_text(value)
    return value.strip()


def lookup(record: Record, path: str) -> Any:
    """The value of a column, or of a field inside one: `reward_model.ground_truth`.

    Raises:
        KeyError: there is none.
    """
    if path in record:
        return record[path]
    first, dot, rest = path.partition(".")
    inside = record[first]
    if not dot or not isinstance(inside, Mapping):
        raise KeyError(path)
    return lookup(inside, rest)


def _layout(record: Record, cfg: config.DataConfig) -> Layout | MissingColumn:
    asked = Layout("", cfg.question_field, cfg.answer_field)
    if _fits(record, asked):
        return asked
    any_question = cfg.question_field == _DEFAULT.question_field
    any_answer = cfg.answer_field in (_DEFAULT.answer_field, "")
    for layout in LAYOUTS:
        if not cfg.answer_field:
            layout = layout._replace(answer="")
        agrees = (any_question or layout.question == cfg.question_field) and (
            any_answer or layout.answer == cfg.answer_field
        )
        if agrees and _fits(record, layout):
            return layout
    return MissingColumn(_missing(record, cfg))


def _fits(record: Record, layout: Layout) -> bool:
    paths = (layout.question, *([layout.answer] if layout.answer else []), *layout.marks)
    return all(_exists(record, path) for path in paths)


def _exists(record: Record, path: str) -> bool:
    try:
        lookup(record, path)
    except KeyError:
        return False
    return True


def _is_answered(messages: Any) -> bool:
    """Whether a chat ends with the assistant's message."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return False
    return isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant"


def _missing(record: Record, cfg: config.DataConfig) -> str:
    """What is missing, the columns that exist, and what was probably meant."""
    columns = list(_paths(record))
    parts = []
    for option, path, usual in (
        ("question_field", cfg.question_field, QUESTIONS),
        ("answer_field", cfg.answer_field, ANSWERS),
    ):
        if path and not _exists(record, path):
            parts.append(_no_field(option, path, usual, columns))
    return f"{'; '.join(parts)}; it has {', '.join(columns) or 'none'}"


def _no_field(option: str, path: str, usual: Sequence[str], columns: Sequence[str]) -> str:
    close = difflib.get_close_matches(path, columns, n=1)
    meant = next((name for name in usual if name in columns), close[0] if close else "")
    guess = f", did you mean --config.data.{option}={meant}?" if meant else ""
    return f'no field "{path}" (config.data.{option}){guess}'


def _paths(record: Record, prefix: str = "", depth: int = 1) -> Iterator[str]:
    for key, value in record.items():
        if isinstance(value, Mapping) and value and depth < _NESTED:
            yield from _paths(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}"
