"""Custom reward functions: `config.reward.fn=FILE.py:function` or `package.module:function`.

    def reward(messages, response, answer, meta):
        return score  # in [0, 1], or (score, feedback): GEPA's reflection model reads the feedback

`messages` are the question's chat messages without a template. `answer` is its reference answer, or
"" if the data has none. `meta` holds its other columns after a round trip through JSON. See
`p2o_jax/rewards/examples.py` for examples.

The function runs in worker processes. Each worker imports the module once. A call may take
`reward.timeout_s` seconds; several functions share them. An exception or an invalid score gives the
status "error" and a score of 0.

A file is loaded by its path. A module is looked up on the import path, which does not include the
current folder: install the package or add its folder to PYTHONPATH. Workers do not see keys or
tokens; `reward.env` names the environment variables that a function needs. Processes that a
function starts are killed when its worker ends, at the latest when a call exceeds its deadline.
"""

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from p2o_jax.types import Question

Judge = Callable[[str], str]
Reply = tuple[float, str, bool]  # score, note, whether the function failed
# Custom functions may open files and sockets, for example of a judging service or a code sandbox.
SEALED = False
PROBE = ""  # sent instead of a request, to check that the functions exist


def judge_name(functions: Sequence[str]) -> str:
    """The `judge` of a `Pool` for these functions. This module's `__getattr__` builds it."""
    return f"{__name__}:{','.join(functions)}"


def request(question: Question, response: str) -> str:
    """The JSON request for scores of a response."""
    meta = {str(k): v for k, v in question.meta.items()}
    return json.dumps(
        [[dict(m) for m in question.messages], response, question.answer, meta], default=str
    )


def __getattr__(functions: str) -> Judge:
    """The judge of a comma-separated list of functions: "package.module:function" or
    "/FOLDER/FILE.py:function".
    """
    if ":" not in functions:
        raise AttributeError(functions)
    loaded = [_function(path) for path in functions.split(",")]

    def judge(text: str) -> str:
        if text == PROBE:
            return ""
        return json.dumps([_call(function, text) for function in loaded])

    return judge


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(":")
    try:
        function = getattr(
            _load(module) if module.endswith(".py") else importlib.import_module(module), name
        )
    except AttributeError:
        raise
    except Exception as e:  # the edge: importing a user's module may raise anything
        missing = isinstance(e, ModuleNotFoundError) and e.name == module.partition(".")[0]
        hint = (
            "; the current folder is not searched: give FILE.py:function, or add the folder to"
            " PYTHONPATH"
            if missing
            else ""
        )
        raise ImportError(f"{type(e).__name__}: {e}{hint}") from e
    if not callable(function):
        raise AttributeError(f"{path} cannot be called")
    return function


def _load(path: str) -> ModuleType:
    """The module of a file, which is run once even if several functions are in it."""
    name = f"p2o_jax_reward_file:{path}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _call(function: Callable[..., Any], text: str) -> Reply:
    try:
        result: Any = function(*json.loads(text))
    except Exception as e:  # the edge: any exception of a user's function counts as an error
        return 0.0, f"{type(e).__name__}: {e}", True
    score, note = result if type(result) is tuple and len(result) == 2 else (result, "")
    value = _number(score)
    if not 0 <= value <= 1 or not isinstance(note, str):
        rule = f"expected a score in [0, 1], or (score, feedback), got {result!r}"
        return 0.0, rule[:500], True
    return value, note, False


def _number(score: Any) -> float:
    try:
        return float(score)
    except (TypeError, ValueError):
        return math.nan
