"""Questions of the reasoning-gym library: `reasoning_gym:TASK,TASK?size=N&seed=N&NAME=VALUE`.

The tasks take turns. `size` (500) is the number of questions of all of them together. Question i of
a task is the library's entry i for this `seed` (0). NAME is a setting that one of the tasks has, or
TASK.NAME for one task.

Entries are made in worker processes, where the order of sets is fixed: the same source has the same
questions on every host and in every start.
"""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from typing import Any

from p2o_jax import config
from p2o_jax.data.tables import Row
from p2o_jax.rewards import reasoning_gym
from p2o_jax.rewards.pool import Pool
from p2o_jax.rewards.verify import num_workers

CHUNK = 20  # entries that a worker makes at a time
TIMEOUT_S = 600.0  # for them
PER_WORKER = 500  # a worker takes seconds to start
_COUNTS = {"size": 500, "seed": 0}


def read(text: str) -> Iterator[Row]:
    """Yields a record for each entry of `TASK,TASK?size=N&seed=N`, or what is wrong with it."""
    names, _, query = text.partition("?")
    tasks = [name.strip() for name in names.split(",")]
    pairs = [(key, value) for key, _, value in (p.partition("=") for p in query.split("&") if p)]
    given = dict(pairs)
    if problems := _problems(tasks, given, len(pairs)):
        yield from ((0, problem) for problem in problems)
        return
    size, seed = (int(given.pop(name, default)) for name, default in _COUNTS.items())
    share = -(-size // len(tasks))
    workers = min(num_workers(config.RewardConfig()), -(-size // PER_WORKER))
    with Pool(workers, TIMEOUT_S, reasoning_gym.GENERATE) as pool:
        asked = {"tasks": tasks, "given": given, "size": share, "seed": seed}
        (reply,) = _replies(pool, [("settings", asked)])
        if "problems" in reply:
            yield from ((0, problem) for problem in reply["problems"])
            return
        yield from _entries(pool, tasks, reply["settings"], size)


def _entries(
    pool: Pool, tasks: Sequence[str], settings: dict[str, Any], size: int
) -> Iterator[Row]:
    requests = [
        ("entries", {"task": task, "settings": settings[task], "indices": indices})
        for t, task in enumerate(tasks)
        for indices in _chunks(len(range(t, size, len(tasks))))
    ]
    by_task: dict[str, list[Any]] = {task: [] for task in tasks}
    for (_, request), reply in zip(requests, _replies(pool, requests), strict=True):
        if "problems" in reply:
            yield from ((0, f"{request['task']}: {problem}") for problem in reply["problems"])
            return
        by_task[request["task"]] += reply["entries"]
    for i in range(size):
        task = tasks[i % len(tasks)]
        entry = by_task[task][i // len(tasks)]
        column = reasoning_gym.column(task, settings[task], entry)
        yield (
            i + 1,
            {
                "question": entry["question"],
                "answer": entry["answer"],
                "family": task,
                reasoning_gym.NAME: column,
            },
        )


def _replies(pool: Pool, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    failures = {
        "time_out": f"{CHUNK} entries took more than {TIMEOUT_S:.0f} s",
        "error": "the worker died",
    }
    try:
        replies = pool.run([(kind, json.dumps(request)) for kind, request in requests])
    except RuntimeError as e:
        return [{"problems": [str(e)]} for _ in requests]
    return [
        {"problems": [failures[reply]]} if reply in failures else json.loads(reply)
        for reply in replies
    ]


def _chunks(count: int) -> list[list[int]]:
    return [list(range(i, min(i + CHUNK, count))) for i in range(0, count, CHUNK)]


def _problems(tasks: Sequence[str], given: dict[str, str], num_given: int) -> list[str]:
    if importlib.util.find_spec("reasoning_gym") is None:
        return ["needs the reasoning-gym library: pip install 'p2o-jax[reasoning-gym]'"]
    problems = []
    if not all(tasks) or len(set(tasks)) < len(tasks):
        problems.append("expected different tasks, separated by commas, as in chain_sum,gcd")
    if len(given) < num_given:
        problems.append("a setting is given twice")
    for name, smallest in (("size", 1), ("seed", 0)):
        text = given.get(name, str(smallest))
        if not text.isascii() or not text.isdecimal() or int(text) < smallest:
            problems.append(f"{name}={text}: expected a whole number of {smallest} or more")
    return problems
