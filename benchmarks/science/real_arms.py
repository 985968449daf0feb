"""The arms of the suite on a real model: settings over examples/laptop, and the task."""

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.science import tasks

BUDGET = 24_000.0  # generated tokens of a run, as in configs/laptop.py
ASK = r"{question} Put the answer in \boxed{}."


class Arm(NamedTuple):
    """Settings over examples/laptop's P²O, and the task. `supervised`: see `supervised.make`."""

    name: str
    what: str
    settings: Mapping[str, str] = {}
    task: str = "boxed"
    supervised: bool = False


ARMS = (
    Arm("grpo", "GRPO", {"gepa.enabled": "false"}),
    Arm("p2o", "P²O, recommended (no mask: `distill.eps_low=1`)"),
    Arm(
        "adaptive",
        "P²O, searching only while it pays (`gepa.schedule=adaptive`)",
        {"gepa.schedule": "adaptive", "gepa.carry_over": "3"},
    ),
    Arm("mask", "P²O with the paper's mask (`distill.eps_low=.99`)", {"distill.eps_low": "0.99"}),
    Arm(
        "asked",
        r"GRPO, each question followed by “Put the answer in \boxed{}.”",
        {"gepa.enabled": "false", "data.prompt_template": ASK},
    ),
    Arm("weaker", "P²O with a weaker mask (`distill.eps_low=.9995`)", {"distill.eps_low": ".9995"}),
    Arm(
        "soft",
        "P²O, the paper's mask as a soft clip (`distill.clip=soft`, `eps_low=.99`)",
        {"distill.clip": "soft", "distill.eps_low": "0.99"},
    ),
    Arm("importance", "P²O, importance weights", {"distill.mode": "importance"}),
    Arm("truncated", "P²O, truncated weights", {"distill.mode": "truncated"}),
    Arm("off", "P²O, trained under the templates (`distill.mode=off`)", {"distill.mode": "off"}),
    Arm(
        "supervised",
        "supervised training on right responses under the templates",
        supervised=True,
    ),
    *(
        arm
        for task in list(tasks.TASKS.values())[1:]
        for arm in (
            Arm(f"grpo-{task.name}", "GRPO", {"gepa.enabled": "false"}, task.name),
            Arm(f"p2o-{task.name}", "P²O, recommended", {}, task.name),
        )
    ),
)
