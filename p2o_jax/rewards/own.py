"""Custom reward functions: `config.reward.fn=FILE.py:function` or `package.module:function`.

    def reward(messages, response, answer, meta):
        return score  # in [0, 1], or (score, feedback): GEPA's reflection model reads the feedback

`messages` are the question's chat messages without a template. `answer` is its reference answer, or
"" if the data has none. `meta` holds its other columns after a round trip through JSON. See
`p2o_jax/rewards/examples.py` for examples.

The function runs in worker processes. Each worker imports the module once. A call may take
`reward.timeout_s` seconds. An exception or an invalid score gives the status "error" and a score
of 0.

A file is loaded by its path. A module is looked up on the import path, which does not include the
current folder: install the package or add its folder to PYTHONPATH. Workers do not see keys or
tokens; `reward.env` names the environment variables that a function needs. Processes that a
function starts are killed when its worker ends, at the latest when a call exceeds its deadline.
"""

import importlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from p2o_jax.types import Question, Status, Verdict

if TYPE_CHECKING:  # workers import this module, but not the config
    from p2o_jax import config

Judge = Callable[[str], str]
# Custom functions may open files and sockets, for example of a judging service or a code sandbox.
SEALED = False
PROBE = ""  # sent instead of a request, to check that the function exists
SHIPPED = "p2o_jax.rewards.examples:"


def judge_name(fn: str) -> str:
    """The `judge` of a `Pool` for config.reward.fn. This module's `__getattr__` builds it."""
    return f"{__name__}:{fn}"


def untrusted(run: "config.RewardConfig", where: str) -> list[str]:
    """A line if a reward config from a run directory would run code outside this package.

    A run directory is data and may come from an untrusted source, as may the module that it names.
    `where` is the file that the config was read from.
    """
    if not run.fn or run.fn.startswith(SHIPPED):
        return []
    env = f" with the environment variables {', '.join(run.env)}" if run.env else ""
    return [
        f"{where}: config.reward.fn={run.fn} would run this code{env}; if you trust it, add"
        " --allow-reward-fn, or name a function on the command line with --config.reward.fn"
    ]


def env_problems(cfg: "config.RewardConfig") -> list[str]:
    """A line for each variable of config.reward.env that is not set."""
    return [
        f"config.reward.env: the environment variable {name} is not set"
        for name in cfg.env
        if name not in os.environ
    ]


def request(question: Question, response: str) -> str:
    """The JSON request for a verdict on a response."""
    meta = {str(k): v for k, v in question.meta.items()}
    return json.dumps(
        [[dict(m) for m in question.messages], response, question.answer, meta], default=str
    )


def verdict(reply: str, success_above: float) -> Verdict:
    """Converts a worker's reply, or the pool's "time_out" or "error", to a verdict."""
    if reply in ("time_out", "error"):
        return Verdict(
            0.0,
            1.0,
            "time_out" if reply == "time_out" else "error",
            "" if reply == "time_out" else "the worker died",
        )
    score, note, error = json.loads(reply)
    status: Status = "error" if error else "correct" if score > success_above else "wrong"
    return Verdict(score, 1.0, status, note)


def __getattr__(path: str) -> Judge:
    """The judge for the function "package.module:function" or "/FOLDER/FILE.py:function"."""
    module, _, name = path.rpartition(":")
    if not module:
        raise AttributeError(path)
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
    return lambda text: "" if text == PROBE else _call(function, text)


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("p2o_jax_reward_file", path)
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _call(function: Callable[..., Any], text: str) -> str:
    """Calls the function; returns [score, note, whether it failed] as JSON."""
    try:
        result: Any = function(*json.loads(text))
    except Exception as e:  # the edge: any exception of a user's function counts as an error
        return json.dumps([0.0, f"{type(e).__name__}: {e}", True])
    score, note = result if type(result) is tuple and len(result) == 2 else (result, "")
    value = _number(score)
    if not 0 <= value <= 1 or not isinstance(note, str):
        return json.dumps(
            [0.0, f"expected a score in [0, 1], or (score, feedback), got {result!r}"[:500], True]
        )
    return json.dumps([value, note, False])


def _number(score: Any) -> float:
    try:
        return float(score)
    except (TypeError, ValueError):
        return math.nan
