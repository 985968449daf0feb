"""Rows for supervised training: a question and an answer, or a chat whose last message is the
assistant's.
"""

from collections.abc import Sequence
from dataclasses import replace

from p2o_jax import config
from p2o_jax.data import benchmarks, sources, tables
from p2o_jax.data.chat import Chat
from p2o_jax.data.sources import Loaded, Record
from p2o_jax.types import Question, digest


def load(path: str, cfg: config.DataConfig, messages_field: str) -> Loaded:
    """The rows of a source, in order: each is a question whose answer is the whole response.

    A row with `messages_field` is a chat, all others hold `cfg.question_field` and
    `cfg.answer_field`. Equal rows stay: a question may have several answers.

    Raises:
        config.ConfigError: one line per problem, as `FILE:LINE: rule`.
    """

    def convert(record: Record) -> Record | str:
        return from_chat(record, cfg, messages_field) if messages_field in record else record

    rows = sources.read(path, replace(cfg, answers="raw"), convert)
    sources.raise_problems(
        [
            f"{path}:{line}: no answer to train on"
            for line, question in zip(rows.lines, rows.questions, strict=True)
            if not question.answer
        ]
    )
    own_ids = (
        replace(q, id=digest(q.id, str(line)))
        for line, q in zip(rows.lines, rows.questions, strict=True)
    )
    return Loaded(str(path), tuple(own_ids), 0, rows.lines, reading=rows.notices)


def from_chat(record: Record, cfg: config.DataConfig, messages_field: str) -> Record | str:
    """The record with the last message as its answer and those before it as its question, or what
    is wrong with it.
    """
    messages = record[messages_field]
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return f"{messages_field}: expected a list of messages, got {tables.kind(messages)}"
    last = messages[-1] if messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return f"{messages_field}: the last message must be the assistant's"
    if not isinstance(last.get("content"), str):
        return f"{messages_field}: the last message has no text"
    rest = {key: value for key, value in record.items() if key != messages_field}
    fields = {cfg.question_field: list(messages[:-1]), cfg.answer_field: last.get("content")}
    return {**rest, **fields}


def load_sets(text: str, cfg: config.DataConfig, messages_field: str) -> list[Loaded]:
    """The sets of config.data.eval_path: sources, or NAME=SOURCE, separated by commas.

    Raises:
        config.ConfigError: with a line for everything wrong with any of them.
    """
    problems: list[str] = []
    sets = []
    for name, source in benchmarks.named(text) if text else []:
        try:
            sets.append(replace(load(source or name, cfg, messages_field), name=name))
        except config.ConfigError as e:
            problems += e.problems
    if problems:
        raise config.ConfigError(*problems)
    return sets


def response_ids(chat: Chat, row: Question) -> tuple[int, ...]:
    """The tokens to train on: the answer and the token that ends the assistant's turn."""
    return (*chat.tokenizer.encode(row.answer), chat.end_of_turn)


def too_long(loaded: Loaded, chat: Chat, limit: int) -> list[str]:
    """A line for each row whose response has more than `limit` tokens."""
    problems = []
    for line, row in zip(loaded.lines, loaded.questions, strict=True):
        num_tokens = len(response_ids(chat, row))
        if num_tokens > limit:
            problems.append(
                f"{loaded.path}:{line}: a response of {num_tokens} tokens;"
                f" config.rollout.max_new_tokens={limit}"
            )
    return sources.shortened(
        problems, sources.MAX_PROBLEMS_SHOWN, f"{loaded.path}: ", "responses that are too long"
    )
