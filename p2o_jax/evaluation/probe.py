"""Figures of a probe: success plainly and under templates, what GRPO can learn from, what the
context ratio mask leaves out; a verdict and a recommendation.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from p2o_jax.config import Config, DistillConfig
from p2o_jax.evaluation import estimates
from p2o_jax.rl.distill import density_ratio, distill_weights
from p2o_jax.types import Rollout

SHOWN_TOKENS = 4  # masked tokens that are named
MAX_MASKED = 0.01  # share of tokens of right responses above which the mask is advised against
FEW_UNSOLVED = 0.1  # share of questions without a plain success below which P²O has little to do


class RightResponse(NamedTuple):
    """A right response under a template: ids and log-probs of its tokens, [R]."""

    token_ids: np.ndarray
    logp_plain_R: np.ndarray
    logp_templated_R: np.ndarray


@dataclass(frozen=True)
class Share:
    """A mean over questions with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_percent(self.mean)} [{_percent(self.low)}, {_percent(self.high)}]"


@dataclass(frozen=True)
class MaskedToken:
    """A token that the mask leaves out of right responses."""

    token: str
    count: int
    rho: float  # the median


@dataclass(frozen=True)
class PromptFigures:
    """What a template does, or the plain prompt (the empty template)."""

    template: str
    questions: int
    per_question: int  # responses at the training temperature
    greedy: Share
    sampled: Share
    mixed: float  # share of groups with successes and failures
    unsolved: int  # questions without a plain success
    rescued: int  # of these, with a success here
    format: float  # share of responses with a final boxed answer
    stopped: float  # share of responses that ended before the limit
    prompt_tokens: float  # mean
    response_tokens: float  # mean
    generated_tokens: int  # of the whole probe of this prompt
    scored: int  # right responses whose tokens were scored without the template
    log_rho: float  # mean over their tokens
    masked: float  # share of their tokens that get the weight 0
    masked_tokens: tuple[MaskedToken, ...]


def without_success(plain: Sequence[Rollout], n: int) -> list[bool]:
    """For each question whether none of its n plain responses is right."""
    groups = [plain[i : i + n] for i in range(0, len(plain), n)]
    return [not any(r.succeeded for r in group) for group in groups]


def measure(
    template: str,
    greedy: Sequence[Rollout],
    sampled: Sequence[Rollout],
    n: int,
    unsolved: Sequence[bool],
    right: Sequence[RightResponse],
    distill: DistillConfig,
    spell: Callable[[int], str],
) -> PromptFigures:
    """The figures of a prompt.

    Args:
        template: empty for the plain prompt.
        greedy: a response to each question.
        sampled: n responses to each question, those of a question together.
        n: their number.
        unsolved: for each question, whether it has no plain success.
        right: right responses of `sampled` with their log-probs; none for the plain prompt.
        distill: the weights of templated tokens.
        spell: the text of a token id.
    """
    groups = [sampled[i : i + n] for i in range(0, len(sampled), n)]
    successes = np.array([[r.succeeded for r in group] for group in groups])
    rates = successes.mean(axis=1)
    lengths = [len(r.completion.token_ids) for r in sampled]
    masked, log_rho, tokens = _masked(right, distill, spell)
    return PromptFigures(
        template=template,
        questions=len(groups),
        per_question=n,
        greedy=_share(np.array([float(r.succeeded) for r in greedy])),
        sampled=_share(rates),
        mixed=float(np.mean((rates > 0) & (rates < 1))),
        unsolved=sum(unsolved),
        rescued=int(np.sum(successes.any(axis=1) & np.array(unsolved))),
        format=float(np.mean([r.verdict.format_score > 0 for r in sampled])),
        stopped=float(np.mean([r.completion.stopped for r in sampled])),
        prompt_tokens=float(np.mean([len(r.prompt_ids) for r in sampled])),
        response_tokens=float(np.mean(lengths)),
        generated_tokens=sum(lengths) + sum(len(r.completion.token_ids) for r in greedy),
        scored=len(right),
        log_rho=log_rho,
        masked=masked,
        masked_tokens=tokens,
    )


def best(measured: Sequence[PromptFigures]) -> PromptFigures | None:
    """The template with the highest success at the training temperature; None without templates."""
    return max(measured[1:], key=lambda m: m.sampled.mean, default=None)


def verdict(measured: Sequence[PromptFigures]) -> str:
    """Whether P²O would help, in one line."""
    plain, top = measured[0], best(measured)
    rate = f"plainly {_percent(plain.sampled.mean)} % of responses are right"
    mixed = f"{_percent(plain.mixed)} of groups are mixed"
    if plain.unsolved <= FEW_UNSOLVED * plain.questions:
        return (
            f"GRPO is enough: {rate} and {mixed}; only {plain.unsolved} of {plain.questions}"
            " questions have no plain success"
        )
    if top is None:
        return (
            f"no templates were tried: {rate}, {mixed}, and {plain.unsolved} of"
            f" {plain.questions} questions have no plain success"
        )
    rescued = f"{top.rescued} of the {top.unsolved} questions without a plain success"
    number = list(measured).index(top)
    if top.sampled.low > plain.sampled.high and top.rescued:
        return (
            f"P²O can help: {rate}, under template {number} {_percent(top.sampled.mean)}; it solves"
            f" {rescued}"
        )
    if top.rescued > 1 and top.sampled.mean > plain.sampled.mean:
        return (
            f"not clear: {rate}, under template {number} {_percent(top.sampled.mean)}; it solves"
            f" {rescued}, and the intervals overlap: try more questions or other templates"
        )
    return (
        f"P²O needs better templates: {rate}, under the best of {len(measured) - 1}"
        f" {_percent(top.sampled.mean)}; it solves {rescued}"
    )


def recommendation(measured: Sequence[PromptFigures], distill: DistillConfig) -> str:
    """What to set in config.distill, in one line; empty where nothing was scored."""
    top = best([measured[0], *(m for m in measured[1:] if m.scored)])
    if top is None:
        return ""
    now = f"mode={distill.mode}, eps_low={distill.eps_low:g}"
    if top.masked <= MAX_MASKED:
        return f"keep distill.{now}: it masks {_percent(top.masked)} of tokens of right responses"
    return (
        f"set distill.eps_low=1.0: {now} masks {_percent(top.masked)} of the tokens of right"
        f" responses: {_names(top.masked_tokens)}"
    )


def table(measured: Sequence[PromptFigures], cfg: Config, available: int) -> str:
    """Everything as Markdown."""
    first = measured[0]
    head = (
        f"{first.questions} of {available} questions, greedily and {first.per_question} times at"
        f" temperature {cfg.rollout.temperature:g}; shares in %, with 95 % intervals"
    )
    rows = [
        "| | prompt | greedy | sampled | mixed | rescued | format | ended | masked"
        " | prompt tokens | response tokens |",
        "| ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, m in enumerate(measured):
        cells = [
            str(number) if number else "",
            _cell(m.template) if m.template else "(plain)",
            m.greedy,
            m.sampled,
            _percent(m.mixed),
            f"{m.rescued} of {m.unsolved}" if number else "",
            _percent(m.format),
            _percent(m.stopped),
            _percent(m.masked) if m.scored else "",
            f"{m.prompt_tokens:.0f}",
            f"{m.response_tokens:.1f}",
        ]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    names = [
        f"template {i}: masked in {m.scored} right responses: {_names(m.masked_tokens)}"
        for i, m in enumerate(measured)
        if m.masked_tokens
    ]
    cost = sum(m.generated_tokens for m in measured)
    advice = recommendation(measured, cfg.distill)
    lines = [*names, f"{cost:,} tokens generated", "", verdict(measured)]
    return "\n".join([head, "", *rows, "", *lines, *([advice] if advice else []), ""])


def _masked(
    right: Sequence[RightResponse], distill: DistillConfig, spell: Callable[[int], str]
) -> tuple[float, float, tuple[MaskedToken, ...]]:
    """(share of tokens with weight 0, mean log rho, the tokens most often masked)."""
    if not right:
        return 0.0, 0.0, ()
    rhos: dict[int, list[float]] = defaultdict(list)
    for r in right:
        rho_R = density_ratio(r.logp_plain_R, r.logp_templated_R)
        weight_R = distill_weights(r.logp_plain_R, r.logp_templated_R, distill)
        for i in np.flatnonzero(weight_R == 0):
            rhos[int(r.token_ids[i])].append(float(rho_R[i]))
    most = sorted(rhos.items(), key=lambda item: (-len(item[1]), item[0]))[:SHOWN_TOKENS]
    total = sum(len(r.token_ids) for r in right)
    shift = sum(float(np.sum(r.logp_plain_R - r.logp_templated_R)) for r in right)
    tokens = (MaskedToken(spell(i), len(of), float(np.median(of))) for i, of in most)
    return sum(map(len, rhos.values())) / total, shift / total, tuple(tokens)


def _share(value_Q: np.ndarray) -> Share:
    mean = float(value_Q.mean())
    interval = estimates.interval_of_mean(mean, estimates.standard_error(value_Q), len(value_Q))
    return Share(mean, *interval)


def _names(tokens: Sequence[MaskedToken]) -> str:
    return ", ".join(f"{t.token!r} {t.count} times (rho {t.rho:.1g})" for t in tokens)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def _cell(template: str, width: int = 40) -> str:
    text = " ".join(template.split()).replace("|", "\\|")
    return text if len(text) <= width else text[: width - 1] + "…"
