"""Reward functions of one's own: `config.reward.fn=FILE.py:function` or `package.module:function`,
called in worker processes.

    def reward(messages, response, answer, meta):
        return score  # in [0, 1]; or (score, feedback), feedback being what GEPA's reflecting model
        reads of this response

`messages` are the question's chat messages without a template, `answer` its reference answer (""
where the data have none), `meta` its other columns as JSON gives them back. The module is imported
once per worker; a call has `reward.timeout_s` seconds. What it raises, and a score that is none, is
the status "error" and scores 0. Examples: `p2o_jax/rewards/examples.py`.

A file is loaded by its path. A module is looked up on the import path, which does not include the
current folder: install the package or add its folder to PYTHONPATH. Workers get no keys or tokens;
`reward.env` names the variables that a function needs. Processes that a function starts live as
long as its worker, at most until the deadline of a call that hangs.
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

if TYPE_CHECKING:  # workers import this module, and need no settings
    from p2o_jax import config

Judge = Callable[[str], str]
# what a user's own function opens is the user's affair: a service that judges, a sandbox that runs
# code
SEALED = False
PROBE = ""  # in place of a request: is the function there?
SHIPPED = "p2o_jax.rewards.examples:"


def judge_name(fn: str) -> str:
    """What `Pool` is to call for config.reward.fn: `__getattr__` of this module makes it, in the
    worker.
    """
    return f"{__name__}:{fn}"


def untrusted(run: "config.RewardConfig", where: str) -> list[str]:
    """A line if this reward, read from the file `where` of a run directory, would run code that is
    not ours.

    A run directory is data. It may come from somebody else, and so may the module that it names.
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
    """The JSON text that asks for a verdict on a response."""
    meta = {str(k): v for k, v in question.meta.items()}
    return json.dumps(
        [[dict(m) for m in question.messages], response, question.answer, meta], default=str
    )


def verdict(reply: str, success_above: float) -> Verdict:
    """The verdict that a worker's reply (or the pool's "time_out" or "error") stands for."""
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
    """The judge around the function at "package.module:function" or "/FOLDER/FILE.py:function"."""
    module, _, name = path.rpartition(":")
    if not module:
        raise AttributeError(path)
    try:
        function = getattr(
            _load(module) if module.endswith(".py") else importlib.import_module(module), name
        )
    except AttributeError:
        raise
    except (
        Exception
    ) as e:  # the edge: whatever a user's module raises is why there is no such function
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
    """JSON [score, note, whether it failed]."""
    try:
        result: Any = function(*json.loads(text))
    except (
        Exception
    ) as e:  # the edge: the fault of the function or of the response, counted as an error
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
