"""Everything that the training loop knows: the state of a run and its parts, to JSON and back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Assignment:
    """For each hard question of the last epoch, the template of each of its G rollouts; other
    questions are asked plainly.
    """

    templates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bandit:
    """What `assign.bandit` knows: the templates in play with a Beta posterior each, and those
    that each hard question may get.
    """

    templates: tuple[str, ...] = ()
    successes: tuple[float, ...] = ()  # discounted evidence
    failures: tuple[float, ...] = ()
    # by question id, indices into templates
    members: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


Tally = tuple[int, int]  # successes, rollouts


@dataclass(frozen=True)
class Attempts:
    """A question's rollouts of one epoch, by the `template_id` of their template; the empty one
    is the plain prompt.
    """

    by_template: Mapping[str, Tally]


@dataclass(frozen=True)
class LearningStatus:
    """What became of a question since it was first hard, in epochs; -1: not (yet).

    `internalised`: the first later epoch with a plain success. `relapsed`: the epoch, after that,
    in which no plain rollout succeeded; it has to be internalised again from there.
    """

    hard: int
    internalised: int = -1
    relapsed: int = -1


@dataclass(frozen=True)
class History:
    """The questions across epochs: attempts of one epoch, the fate of all that have ever been
    hard, and how long responses are.
    """

    epoch: int = 0  # that `attempts` belong to
    attempts: Mapping[str, Attempts] = field(default_factory=dict)
    fates: Mapping[str, LearningStatus] = field(default_factory=dict)
    # mean of a question's responses when it was last asked
    tokens: Mapping[str, float] = field(default_factory=dict)


Phase = Literal["policy", "prompts"]


@dataclass(frozen=True)
class Ledger:
    """What each phase has cost on the way to a state: rollouts, prompt and generated tokens,
    estimated FLOPs, seconds.

    It is part of the state, so work that a kill threw away and that was done again is in it once.
    """

    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def add(self, phase: str, **amounts: float) -> "Ledger":
        """The ledger with these amounts added to a phase."""
        row = dict(self.costs.get(phase, {}))
        for name, amount in amounts.items():
            row[name] = row.get(name, 0) + amount
        return Ledger({**self.costs, phase: row})

    def plus(self, costs: Mapping[str, Mapping[str, float]]) -> "Ledger":
        """The ledger with the amounts of several phases added."""
        ledger = self
        for phase, amounts in costs.items():
            ledger = ledger.add(phase, **amounts)
        return ledger

    def total(self, name: str, without: Sequence[str] = ("eval",)) -> float:
        """The sum over all phases; evaluation is a measurement and not a cost of training."""
        return sum(row.get(name, 0) for phase, row in self.costs.items() if phase not in without)


@dataclass(frozen=True)
class RunState:
    """Everything the training loop knows, and so everything that a checkpoint holds. Replaced,
    never patched.

    `tick` counts policy steps and prompt phases together; `learner` is the device part
    (rl.learner.TrainState).
    """

    learner: Any
    tick: int = 0
    step: int = 0  # policy steps made
    phase: Phase = "policy"  # what comes next
    hard_ids: tuple[str, ...] = ()  # found hard in the running epoch
    last_hard_ids: tuple[str, ...] = ()  # found hard in the epoch before
    assignment: Assignment = field(default_factory=Assignment)
    ledger: Ledger = field(default_factory=Ledger)
    bandit: Bandit = field(default_factory=Bandit)
    history: History = field(default_factory=History)
    best_template: str = ""  # of the newest prompt phase, by dev score

    def to_json(self) -> dict[str, Any]:
        """All but the device part."""
        return {
            "tick": self.tick,
            "step": self.step,
            "phase": self.phase,
            "hard_ids": list(self.hard_ids),
            "last_hard_ids": list(self.last_hard_ids),
            "assignment": _texts_once(self.assignment.templates),
            "ledger": {k: dict(v) for k, v in self.ledger.costs.items()},
            "bandit": asdict(self.bandit),
            "history": asdict(self.history),
            "best_template": self.best_template,
        }

    @staticmethod
    def from_json(learner: Any, host: Mapping[str, Any]) -> "RunState":
        """The state that `to_json` returned `host` for, with its device part."""
        return RunState(
            learner=learner,
            tick=host["tick"],
            step=host["step"],
            phase=host["phase"],
            hard_ids=tuple(host["hard_ids"]),
            last_hard_ids=tuple(host["last_hard_ids"]),
            assignment=Assignment(_texts_everywhere(host["assignment"])),
            ledger=Ledger(host["ledger"]),
            bandit=_bandit(host["bandit"]),
            history=_history(host["history"]),
            best_template=host["best_template"],
        )


def _texts_once(groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The groups with a number for each text: thousands of questions share a few templates of
    thousands of characters.
    """
    numbers: dict[str, int] = {}
    numbered = {
        name: [numbers.setdefault(text, len(numbers)) for text in texts]
        for name, texts in groups.items()
    }
    return {"texts": list(numbers), "groups": numbered}


def _texts_everywhere(value: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(value["texts"][i] for i in group) for name, group in value["groups"].items()
    }


def _bandit(value: Mapping[str, Any]) -> Bandit:
    members = {name: tuple(arms) for name, arms in value["members"].items()}
    return Bandit(
        tuple(value["templates"]), tuple(value["successes"]), tuple(value["failures"]), members
    )


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
    )
