"""What the rooms of the house hand to each other on the host: plain frozen records, no JAX.

A *question* is asked under a *template* (empty: plainly), which makes a *request* to the sampler; the sampler returns a
*completion*, the verifier a *verdict*, and the four together are a *rollout*.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Status = Literal["correct", "wrong", "no_answer", "time_out", "error"]


def digest(*parts: str) -> str:
    """A 16-digit hexadecimal name that is the same on every host and in every run (Python's `hash` is not)."""
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def question_id(messages: Sequence[Message]) -> str:
    """The stable id of a question: a digest of its untemplated messages (algorithm step 4), never its position."""
    return digest(json.dumps([dict(sorted(m.items())) for m in messages], ensure_ascii=False))


@dataclass(frozen=True)
class Question:
    """A question with its reference answer; the last message is the user's."""

    id: str
    messages: tuple[Message, ...]
    answer: str
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Ask:
    """A question to be answered under a template. `name` makes the rollout's randomness: unique within a call."""

    question: Question
    template: str
    name: str
    expected_tokens: float = 0.0  # of the response, as far as is known


@dataclass(frozen=True)
class Request:
    """A prompt for the sampler. The text sampled depends on (weights, prompt, call key, name) and nothing else."""

    prompt_ids: tuple[int, ...]
    name: str
    expected_tokens: float = 0.0  # of the response, for sharing out the work; 0: not known


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy; 0 turns `top_k` and `min_p` off, 1 turns `top_p` off."""

    temperature: float
    max_new_tokens: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    plain_logps: bool = False  # log-probs under softmax(logits), not under the tempered distribution


@dataclass(frozen=True)
class Completion:
    """Sampled tokens, the stop token included, and their log-probs under the tempered distribution, before any filter."""

    token_ids: np.ndarray  # int32 [R]
    logp_R: np.ndarray  # float32 [R]
    stopped: bool  # False: cut at max_new_tokens


@dataclass(frozen=True)
class Verdict:
    """A response's scores in [0, 1]: did the answer verify, and was there a final boxed answer at all.

    A score above `reward.success_above` is "correct", which is what success means everywhere.
    """

    answer_score: float
    format_score: float
    status: Status
    note: str = ""  # what a reward function of one's own said, or why it could not judge


@dataclass(frozen=True)
class Rollout:
    """One scored answer to T(x, z). `plain_ids` is the prompt without the template, on which the update is made."""

    ask: Ask
    prompt_ids: tuple[int, ...]
    plain_ids: tuple[int, ...]
    completion: Completion
    text: str
    verdict: Verdict

    @property
    def templated(self) -> bool:
        return bool(self.ask.template.strip())

    @property
    def succeeded(self) -> bool:
        return self.verdict.status == "correct"


@dataclass(frozen=True)
class Outcome:
    """What GEPA learns of one (template, question) pair: a score in [0, 1], a format score, and the response's text."""

    score: float
    format_score: float
    text: str
    feedback: str = ""  # of a reward function of one's own
    transfer: float = 0.0  # how likely the response is without its template, against with it (config.gepa.reliance)


@dataclass(frozen=True)
class SearchResult:
    """The end of a GEPA phase: every accepted template with its parent and dev scores, and the greedy cover Z(e)."""

    templates: tuple[str, ...]  # candidate 0 is the empty template
    parents: tuple[int | None, ...]
    dev_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    score_ZN: tuple[tuple[float, ...], ...]  # [candidate][dev question]
    cover: tuple[int, ...]  # indices into templates, in the order the greedy cover took them
    stats: Mapping[str, float] = field(default_factory=dict)  # becomes gepa/* metrics
    events: tuple[Mapping[str, Any], ...] = ()  # one per proposal: text, parent, iteration, outcome and reason
    success_above: float = 0.5  # config.reward.success_above

    def solves(self, candidate: int, dev_question: int) -> bool:
        """Whether a candidate's score on a dev question, by its place in `dev_ids`, is a success."""
        return self.score_ZN[candidate][dev_question] > self.success_above


@dataclass(frozen=True)
class Assignment:
    """For each hard question of the last epoch, the template of each of its G rollouts; other questions are asked plainly."""

    templates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bandit:
    """What `assign.bandit` knows: the templates in play with a Beta posterior each, and those that each hard question may get."""

    templates: tuple[str, ...] = ()
    successes: tuple[float, ...] = ()  # discounted evidence
    failures: tuple[float, ...] = ()
    members: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by question id, indices into templates


def template_id(template: str) -> str:
    """A short name of a template's text, empty for the empty template: texts are long, and many questions share one."""
    return digest(template.strip()) if template.strip() else ""


Tally = tuple[int, int]  # successes, rollouts


@dataclass(frozen=True)
class Attempts:
    """A question's rollouts of one epoch, by the `template_id` of their template; the empty one is the plain prompt."""

    by_template: Mapping[str, Tally]


@dataclass(frozen=True)
class Fate:
    """What became of a question since it was first hard, in epochs; -1: not (yet).

    `internalised`: the first later epoch with a plain success. `relapsed`: the epoch, after that, in which no plain rollout
    succeeded; it has to be internalised again from there.
    """

    hard: int
    internalised: int = -1
    relapsed: int = -1


@dataclass(frozen=True)
class History:
    """The questions across epochs: attempts of one epoch, the fate of all that have ever been hard, and how long responses are."""

    epoch: int = 0  # that `attempts` belong to
    attempts: Mapping[str, Attempts] = field(default_factory=dict)
    fates: Mapping[str, Fate] = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)  # mean of a question's responses when it was last asked


Phase = Literal["policy", "prompts"]


@dataclass(frozen=True)
class Ledger:
    """What each phase has cost on the way to a state: rollouts, prompt and generated tokens, estimated FLOPs, seconds.

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
    """Everything the training loop knows, and so everything that a checkpoint holds. Replaced, never patched.

    `tick` counts policy steps and prompt phases together; `learner` is the device part (rl.learner.TrainState).
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

    def host_state(self) -> dict[str, Any]:
        """All but the device part, as JSON."""
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
    def restored(learner: Any, host: Mapping[str, Any]) -> "RunState":
        """The state whose `host_state` this is."""
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
    """The groups with a number for each text: thousands of questions share a few templates of thousands of characters."""
    numbers: dict[str, int] = {}
    numbered = {name: [numbers.setdefault(text, len(numbers)) for text in texts] for name, texts in groups.items()}
    return {"texts": list(numbers), "groups": numbered}


def _texts_everywhere(value: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(value["texts"][i] for i in group) for name, group in value["groups"].items()}


def _bandit(value: Mapping[str, Any]) -> Bandit:
    members = {name: tuple(arms) for name, arms in value["members"].items()}
    return Bandit(tuple(value["templates"]), tuple(value["successes"]), tuple(value["failures"]), members)


def _history(value: Mapping[str, Any]) -> History:
    attempts = {k: Attempts({t: (n[0], n[1]) for t, n in v["by_template"].items()}) for k, v in value["attempts"].items()}
    return History(value["epoch"], attempts, {k: Fate(**v) for k, v in value["fates"].items()}, value["tokens"])
