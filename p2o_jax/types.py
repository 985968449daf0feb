"""What the rooms of the house hand to each other on the host: plain frozen records, no JAX.

A *question* is asked under a *template* (empty: plainly), which makes a *request* to the sampler;
the sampler returns a *completion*, the verifier a *verdict*, and the four together are a *rollout*.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Status = Literal["correct", "wrong", "no_answer", "time_out", "error"]


def digest(*parts: str) -> str:
    """A 16-digit hexadecimal name that is the same on every host and in every run (Python's
    `hash` is not).
    """
    return hashlib.blake2b(
        "\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=8
    ).hexdigest()


def question_id(messages: Sequence[Message]) -> str:
    """The stable id of a question: a digest of its untemplated messages (algorithm step 4),
    never its position.
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

    @property
    def text(self) -> str:
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class TemplatedQuestion:
    """A question to be answered under a template. `name` makes the rollout's randomness: unique
    within a call.
    """

    question: Question
    template: str
    name: str
    expected_tokens: float = 0.0  # of the response, as far as is known


@dataclass(frozen=True)
class Request:
    """A prompt for the sampler. The text sampled depends on (weights, prompt, call key, name)
    and nothing else.
    """

    prompt_ids: tuple[int, ...]
    name: str
    expected_tokens: float = 0.0  # of the response, for sharing out the work; 0: not known


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. Temperature 0 is greedy; 0 turns `top_k` and `min_p` off, 1 turns
    `top_p` off.
    """

    temperature: float
    max_new_tokens: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    plain_logps: bool = (
        False  # log-probs under softmax(logits), not under the tempered distribution
    )


@dataclass(frozen=True)
class Completion:
    """Sampled tokens, the stop token included, and their log-probs under the tempered
    distribution, before any filter.
    """

    token_ids: np.ndarray  # int32 [R]
    logp_R: np.ndarray  # float32 [R]
    stopped: bool  # False: cut at max_new_tokens


@dataclass(frozen=True)
class Verdict:
    """A response's scores in [0, 1]: did the answer verify, and was there a final boxed answer at
    all.

    A score above `reward.success_above` is "correct", which is what success means everywhere.
    """

    answer_score: float
    format_score: float
    status: Status
    note: str = ""  # what a reward function of one's own said, or why it could not judge


@dataclass(frozen=True)
class Rollout:
    """One scored answer to T(x, z). `plain_ids` is the prompt without the template, on which the
    update is made.
    """

    prompt: TemplatedQuestion
    prompt_ids: tuple[int, ...]
    plain_ids: tuple[int, ...]
    completion: Completion
    text: str
    verdict: Verdict

    @property
    def templated(self) -> bool:
        return bool(self.prompt.template.strip())

    @property
    def succeeded(self) -> bool:
        return self.verdict.status == "correct"


@dataclass(frozen=True)
class Outcome:
    """What GEPA learns of one (template, question) pair: a score in [0, 1], a format score, and
    the response's text.
    """

    score: float
    format_score: float
    text: str
    feedback: str = ""  # of a reward function of one's own
    # how likely the response is without its template, against with it (config.gepa.reliance)
    transfer: float = 0.0


@dataclass(frozen=True)
class SearchResult:
    """The end of a GEPA phase: every accepted template with its parent and dev scores, and the
    greedy cover Z(e).
    """

    templates: tuple[str, ...]  # candidate 0 is the empty template
    parents: tuple[int | None, ...]
    dev_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    score_ZN: tuple[tuple[float, ...], ...]  # [candidate][dev question]
    cover: tuple[int, ...]  # indices into templates, in the order the greedy cover took them
    stats: Mapping[str, float] = field(default_factory=dict)  # becomes gepa/* metrics
    events: tuple[
        Mapping[str, Any], ...
    ] = ()  # one per proposal: text, parent, iteration, outcome and reason
    success_above: float = 0.5  # config.reward.success_above

    def solves(self, candidate: int, dev_question: int) -> bool:
        """Whether a candidate's score on a dev question, by its place in `dev_ids`, is a success."""
        return self.score_ZN[candidate][dev_question] > self.success_above


def template_id(template: str) -> str:
    """A short name of a template's text, empty for the empty template: texts are long, and many
    questions share one.
    """
    return digest(template.strip()) if template.strip() else ""
