"""Makes and scores entries of reasoning-gym, in worker processes of a `Pool`.

Some of the library's scorers pass answers to `eval` or to SymPy's `parse_expr`, which evaluates
Python. Here they get an `eval` of literals and arithmetic, and a `parse_expr` of formulas.
"""

import dataclasses
import difflib
import functools
import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

from p2o_jax.rewards.safe_eval import check_formula, evaluate
from p2o_jax.rewards.tagged_json import decode, encode

# by name: this package has a module of the library's name, which type checkers take for it
library: Any = importlib.import_module("reasoning_gym")
factory: Any = importlib.import_module("reasoning_gym.factory")


def generate(kind: str, text: str) -> str:
    """Replies to a request for typed `settings` or for `entries`; both sides are JSON.

    The reply is {"problems": lines} if the request cannot be met.
    """
    try:
        return json.dumps({"settings": _settings, "entries": _entries}[kind](**json.loads(text)))
    except Exception as e:  # the edge: the library's checks and generators raise anything
        return json.dumps({"problems": [f"{type(e).__name__}: {e}"[:500]]})


def score(text: str) -> str:
    """The library's score of an answer as JSON: [score, note, whether the scorer failed]."""
    _disarm()
    task, settings, entry, answer = json.loads(text)
    try:
        dataset = _dataset(task, json.dumps(settings))
        value = float(dataset.score_answer(answer, decode(entry)))
    except Exception as e:  # the edge: scorers raise anything at answers that they cannot read
        return json.dumps([0.0, f"the scorer of {task}: {type(e).__name__}: {e}"[:500], True])
    if not 0 <= value <= 1:
        return json.dumps([0.0, f"the scorer of {task} gave {value}, not in [0, 1]", True])
    return json.dumps([value, "", False])


def _settings(tasks: list[str], given: dict[str, str], size: int, seed: int) -> dict[str, Any]:
    """The settings of each task; `given` are texts, by NAME or TASK.NAME."""
    problems = [
        f"no task {task}{_close(task, factory.DATASETS)}"
        for task in tasks
        if task not in factory.DATASETS
    ]
    if problems:
        return {"problems": problems}
    typed: dict[str, dict[str, Any]] = {task: {"size": size, "seed": seed} for task in tasks}
    for key, text in given.items():
        only, _, name = key.rpartition(".")
        fields = {task: _fields(task) for task in ([only] if only in tasks else tasks)}
        having = [task for task in fields if name in fields[task]]
        if (only and only not in tasks) or not having:
            known = {n for names in fields.values() for n in names}
            problems.append(
                f"{key}={text}: no such setting of {', '.join(fields)}{_close(name, known)}"
            )
        for task in having if not only or only in tasks else ():
            try:
                typed[task][name] = _typed(text, fields[task][name])
            except ValueError as e:
                problems.append(f"{key}={text}: {e}")
    for task, settings in () if problems else typed.items():
        try:
            _dataset(task, json.dumps(settings))
        except Exception as e:  # the edge: the library's checks are assertions of any kind
            problems.append(f"{task}: {type(e).__name__}: {e}")
    return {"problems": problems} if problems else {"settings": typed}


def _entries(task: str, settings: dict[str, Any], indices: list[int]) -> dict[str, Any]:
    dataset = _dataset(task, json.dumps(settings))
    return {"entries": [encode(dataset[i]) for i in indices]}


@functools.lru_cache(maxsize=256)
def _dataset(task: str, settings: str) -> Any:
    return library.create_dataset(task, **json.loads(settings))


def _fields(task: str) -> dict[str, Any]:
    """The defaults of a task's settings."""
    config = factory.DATASETS[task][1]
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(config)
    }


def _typed(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError("expected true or false")
        return text.lower() == "true"
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            raise ValueError(f"expected {type(default).__name__}") from None
    if isinstance(default, str):
        return text
    raise ValueError("a setting that is no number, text, true or false cannot be given here")


def _close(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


@functools.cache
def _disarm() -> None:
    """Replaces what the library's scorers evaluate answers with. Entries are made before."""
    sympy: Any = sys.modules.get("sympy")  # the library has imported it, if it uses it
    original = sympy.parse_expr if sympy else None
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "reasoning_gym":
            vars(module).update(eval=_evaluate, exec=_refuse)
            if original and vars(module).get("parse_expr") is original:
                vars(module)["parse_expr"] = _of_formula(original)
    if sympy and original:
        sympy.parse_expr = _of_formula(original)


def _of_formula(parse_expr: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(parse_expr)
    def parse_formula(text: str, *args: Any, **kwargs: Any) -> Any:
        check_formula(text)
        return parse_expr(text, *args, **kwargs)

    return parse_formula


def _evaluate(text: str, *_: Any) -> Any:
    return evaluate(text)


def _refuse(*_: Any) -> None:
    raise ValueError("code is not run in a scorer")
