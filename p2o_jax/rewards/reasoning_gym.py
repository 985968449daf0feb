"""Questions of the reasoning-gym library, and answers for its scorers.

The library runs in worker processes only (`reasoning_gym_worker`). Its import takes seconds, and
its scorers read text of the policy.
"""

import json
import re
from typing import Any

from p2o_jax.rewards.boxed import after_thinking, last_boxed
from p2o_jax.types import Question

NAME = "reasoning_gym"  # in sources, as `Question.scorer`, and of the library's column in `meta`
GENERATE = "p2o_jax.rewards.reasoning_gym_worker:generate"
SCORE = "p2o_jax.rewards.reasoning_gym_worker:score"
SETUP_S = 10.0  # that a worker may take to read a task's data, before its first score
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|texttt|textbf|mathrm)\s*\{([^{}]*)\}")


def answer_in(response: str) -> str | None:
    r"""The answer to score: the last box without an outer `\text`, else the last `<answer>` tag.

    None if there is neither after the thinking.
    """
    said = after_thinking(response)
    if said is None:
        return None
    content = last_boxed(said)
    if content is None:
        tagged = _TAGGED.findall(said)
        return tagged[-1].strip() if tagged else None
    text = _TEXT.fullmatch(content)
    return text.group(1).strip() if text else content


def column(task: str, settings: dict[str, Any], entry: Any) -> dict[str, Any]:
    """The column of `meta` that scoring needs.

    Args:
        task: name of the task.
        settings: its settings, seed and size among them.
        entry: the library's entry as JSON, in the form of `tagged_json.encode`.
    """
    return {"task": task, "settings": settings, "entry": entry}


def request(question: Question, answer: str) -> str:
    """The JSON request for the score of an answer."""
    values = question.meta[NAME]
    return json.dumps([values["task"], values["settings"], values["entry"], answer])
