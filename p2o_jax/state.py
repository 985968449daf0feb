"""The state of a training run, and its conversion to and from JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Assignment:
    """The template of each of the G rollouts of every hard question of the last epoch. Other
    questions are asked plainly.
    """

    templates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


Tally = tuple[int, int]  # successes, rollouts
# by question and `template_id`: successes and rollouts, older epochs counting less
RecentTallies = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class Attempts:
    """A question's rollouts in one epoch, by `template_id`; the plain prompt has an empty id."""

    by_template: Mapping[str, Tally]


@dataclass(frozen=True)
class LearningStatus:
    """How a question developed after it first became hard. Values are epochs; -1 means not (yet).

    `internalised` is the first later epoch with a success on the plain prompt. `relapsed` is a
    later epoch without any such success; the question must then be internalised again.
    """

    hard: int
    internalised: int = -1
    relapsed: int = -1


@dataclass(frozen=True)
class History:
    """The questions across epochs: attempts of one epoch, the status of all questions that were
    ever hard, and response lengths.
    """

    epoch: int = 0  # of `attempts`
    attempts: Mapping[str, Attempts] = field(default_factory=dict)
    fates: Mapping[str, LearningStatus] = field(default_factory=dict)
    # mean response length when the question was last asked
    tokens: Mapping[str, float] = field(default_factory=dict)
    recent: RecentTallies = field(default_factory=dict)


@dataclass(frozen=True)
class SliceRecord:
    """The slices of search (iterations of GEPA) of all prompt phases so far: how many, and how many
    of the latest, in a row, covered no further question.
    """

    count: int = 0
    fruitless: int = 0


Phase = Literal["policy", "prompts"]


@dataclass(frozen=True)
class Ledger:
    """What each phase has cost so far: rollouts, prompt and generated tokens, estimated FLOPs,
    seconds.

    The ledger is part of the state, so work that was lost in a crash and repeated is counted once.
    """

    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def add(self, phase: str, **amounts: float) -> "Ledger":
        """Returns the ledger with these amounts added to a phase."""
        row = dict(self.costs.get(phase, {}))
        for name, amount in amounts.items():
            row[name] = row.get(name, 0) + amount
        return Ledger({**self.costs, phase: row})

    def plus(self, costs: Mapping[str, Mapping[str, float]]) -> "Ledger":
        """Returns the ledger with the amounts of several phases added."""
        ledger = self
        for phase, amounts in costs.items():
            ledger = ledger.add(phase, **amounts)
        return ledger

    def total(self, name: str, without: Sequence[str] = ("eval",)) -> float:
        """Returns the sum over all phases. Evaluation is excluded: it is a measurement, not a cost
        of training.
        """
        return sum(row.get(name, 0) for phase, row in self.costs.items() if phase not in without)


@dataclass(frozen=True)
class RunState:
    """The complete state of a training run, and so the contents of a checkpoint. It is replaced,
    never mutated.

    `tick` counts policy steps and prompt phases together. `learner` is the part on the devices
    (rl.learner.TrainState).
    """

    learner: Any
    tick: int = 0
    step: int = 0  # policy steps completed
    phase: Phase = "policy"  # the next phase
    hard_ids: tuple[str, ...] = ()  # mined in the current epoch
    last_hard_ids: tuple[str, ...] = ()  # mined in the previous epoch
    assignment: Assignment = field(default_factory=Assignment)
    ledger: Ledger = field(default_factory=Ledger)
    history: History = field(default_factory=History)
    best_template: str = ""  # of the last prompt phase, by dev score
    pool: tuple[str, ...] = ()  # templates that the next prompt phase takes over
    slices: SliceRecord = field(default_factory=SliceRecord)

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the device part, as JSON values."""
        return {
            "tick": self.tick,
            "step": self.step,
            "phase": self.phase,
            "hard_ids": list(self.hard_ids),
            "last_hard_ids": list(self.last_hard_ids),
            "assignment": _deduplicated(self.assignment.templates),
            "ledger": {k: dict(v) for k, v in self.ledger.costs.items()},
            "history": asdict(self.history),
            "best_template": self.best_template,
            "pool": list(self.pool),
            "slices": asdict(self.slices),
        }

    @staticmethod
    def from_json(learner: Any, host: Mapping[str, Any]) -> "RunState":
        """Returns the state that `to_json` returned `host` for, with its device part."""
        return RunState(
            learner=learner,
            tick=host["tick"],
            step=host["step"],
            phase=host["phase"],
            hard_ids=tuple(host["hard_ids"]),
            last_hard_ids=tuple(host["last_hard_ids"]),
            assignment=Assignment(_expanded(host["assignment"])),
            ledger=Ledger(host["ledger"]),
            history=_history(host["history"]),
            best_template=host["best_template"],
            # earlier versions do not have these
            pool=tuple(host.get("pool", ())),
            slices=SliceRecord(**host.get("slices", {})),
        )


@dataclass(frozen=True)
class SftState:
    """The state of supervised training. Every step is a tick."""

    learner: Any
    step: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    phase: str = "train"

    @property
    def tick(self) -> int:
        """The number of the state."""
        return self.step

    def to_json(self) -> dict[str, Any]:
        """All but the device part."""
        return {"step": self.step, "ledger": {k: dict(v) for k, v in self.ledger.costs.items()}}

    @staticmethod
    def from_json(learner: Any, host: Mapping[str, Any]) -> "SftState":
        """The state that `to_json` returned `host` for, with its device part."""
        return SftState(learner, host["step"], Ledger(host["ledger"]))


def _deduplicated(groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Stores each distinct text once: thousands of questions share a few templates of thousands of
    characters.
    """
    numbers: dict[str, int] = {}
    numbered = {
        name: [numbers.setdefault(text, len(numbers)) for text in texts]
        for name, texts in groups.items()
    }
    return {"texts": list(numbers), "groups": numbered}


def _expanded(value: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Inverts `_deduplicated`."""
    return {
        name: tuple(value["texts"][i] for i in group) for name, group in value["groups"].items()
    }


def _history(value: Mapping[str, Any]) -> History:
    attempts = {
        k: Attempts({t: (n[0], n[1]) for t, n in v["by_template"].items()})
        for k, v in value["attempts"].items()
    }
    return History(
        value["epoch"],
        attempts,
        {k: LearningStatus(**v) for k, v in value["fates"].items()},
        value["tokens"],
        {
            name: {t: (n[0], n[1]) for t, n in by_template.items()}
            for name, by_template in value.get("recent", {}).items()  # new
        },
    )
