"""The records that packages exchange on the host: plain, frozen, without JAX.

A *question* asked under a *template* becomes a *request* to the sampler. The sampler returns a
*completion*, the verifier a *verdict*, and together they form a *rollout*. The empty template asks
the question plainly.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Status = Literal["correct", "wrong", "no_answer", "time_out", "error"]
STATUSES: dict[Status, str] = {
    "correct": "the answer scores above reward.success_above",
    "wrong": "the answer does not score above reward.success_above",
    "no_answer": "the response has no final answer to judge",
    "time_out": "the answer could not be judged in time; it scores 0",
    "error": "the verification failed; the answer scores 0",
}


def digest(*parts: str) -> str:
    """Returns a 16-digit hexadecimal digest, the same on every host and in every run (unlike
    `hash`).
    """
    return hashlib.blake2b(
        "\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=8
    ).hexdigest()


def question_id(messages: Sequence[Message]) -> str:
    """Returns a question's stable id: a digest of its messages without template, independent of its
    position (algorithm step 4).
    """
    return digest(json.dumps([dict(sorted(m.items())) for m in messages], ensure_ascii=False))


@dataclass(frozen=True)
class Question:
    """A question with its reference answer; the last message is the user's."""

    id: str
    messages: tuple[Message, ...]
    answer: str
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    scorer: str = ""  # the library whose scorer judges answers; "": compared with `answer`
    hint: str = ""  # config.data.hint_field; read from training questions only

    @property
    def text(self) -> str:
        """The user's message."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class TemplatedQuestion:
    """A question to ask under a template. `name` seeds the rollout's randomness and is unique
    within a call.
    """

    question: Question
    template: str
    name: str
    expected_tokens: float = 0.0  # estimated response length; 0: unknown


@dataclass(frozen=True)
class Request:
    """A prompt for the sampler. The sampled text depends on (weights, prompt, call key, name)
    alone.
    """

    prompt_ids: tuple[int, ...]
    name: str
    expected_tokens: float = 0.0  # estimated response length, to balance shards; 0: unknown
    max_new_tokens: int = 0  # limit of this response, where it is below the call's; 0: the call's


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. Temperature 0 is greedy; 0 disables `top_k` and `min_p`, 1 disables
    `top_p`.
    """

    temperature: float
    max_new_tokens: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    plain_logps: bool = (
        False  # log-probs under softmax(logits) instead of the tempered distribution
    )


@dataclass(frozen=True)
class Completion:
    """Sampled tokens, including the stop token, with log-probs under the tempered distribution
    before any filter.
    """

    token_ids: np.ndarray  # int32 [R]
    logp_R: np.ndarray  # float32 [R]
    stopped: bool  # False: truncated at max_new_tokens
    # the experts that computed each token's predecessor (`experts.choices_of_token`), if they are
    # recorded; else X is 0
    choice_RX: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))


@dataclass(frozen=True)
class Verdict:
    """The scores of a response, in [0, 1]: is the answer right, and is there a final boxed answer
    at all.

    A rollout succeeds if its status is "correct": its answer score is above `reward.success_above`.
    """

    answer_score: float
    format_score: float
    status: Status
    note: str = ""  # message of a custom reward function, or why it failed
    by_reward: tuple[tuple[str, float], ...] = ()  # of several rewards, the name and score of each


@dataclass(frozen=True)
class Rollout:
    """One scored response to a question under a template. The update is made on `plain_ids`, the
    prompt without template.
    """

    prompt: TemplatedQuestion
    prompt_ids: tuple[int, ...]
    plain_ids: tuple[int, ...]
    completion: Completion
    text: str
    verdict: Verdict

    @property
    def templated(self) -> bool:
        """Whether the question was asked under a template that is not empty."""
        return bool(self.prompt.template.strip())

    @property
    def succeeded(self) -> bool:
        """Whether the answer was judged correct."""
        return self.verdict.status == "correct"


@dataclass(frozen=True)
class Outcome:
    """What GEPA learns about one (template, question) pair: answer and format scores in [0, 1], and
    the response.
    """

    score: float
    format_score: float
    text: str
    feedback: str = ""  # from a custom reward function


@dataclass(frozen=True)
class Reply:
    """A reply of the reflecting model."""

    text: str
    cut: bool = False  # it ended at the token limit
    in_thought: bool = False  # it may begin inside a thought that its prompt opened

    def to_json(self) -> str | dict[str, Any]:
        """Returns a JSON value: the text alone, unless there is more to say."""
        return self.text if self == Reply(self.text) else asdict(self)

    @staticmethod
    def from_json(value: str | Mapping[str, Any]) -> "Reply":
        """Returns the reply that `to_json` returned `value` for."""
        return Reply(value) if isinstance(value, str) else Reply(**value)


@dataclass(frozen=True)
class SearchResult:
    """Result of a GEPA phase: accepted templates with their parents and dev scores, and the greedy
    cover Z(e).
    """

    templates: tuple[str, ...]  # candidate 0 is the empty template
    parents: tuple[int | None, ...]
    dev_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    score_ZN: tuple[tuple[float, ...], ...]  # [candidate][dev question]
    cover: tuple[int, ...]  # indices into templates, in the order of the greedy cover
    stats: Mapping[str, float] = field(default_factory=dict)  # the gepa/* metrics
    events: tuple[
        Mapping[str, Any], ...
    ] = ()  # one per proposal, and per template that the phase could not begin with (no parent)
    success_above: float = 0.5  # config.reward.success_above

    def solves(self, candidate: int, dev_question: int) -> bool:
        """Whether a candidate succeeds on a dev question, given by its index in `dev_ids`."""
        return self.score_ZN[candidate][dev_question] > self.success_above


def template_id(template: str) -> str:
    """Returns a short digest that names a template; empty for the empty template."""
    return digest(template.strip()) if template.strip() else ""
