"""Figures of a probe: success plainly and under templates, what GRPO can learn from, what the
context ratio mask leaves out; a verdict and a recommendation.
"""

import math
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
PAPER = DistillConfig(eps_low=0.99)  # the paper's context ratio mask
SIGN_TEST = 0.025  # one-sided
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
    lost: int  # questions with a plain success, but without one here
    format: float  # share of responses with a final boxed answer
    stopped: float  # share of responses that ended before the limit
    prompt_tokens: float  # mean
    response_tokens: float  # mean
    generated_tokens: int  # of the whole probe of this prompt
    unjudged: int  # responses whose verdict is an error or a time-out
    scored: int  # right responses whose tokens were scored without the template
    log_rho: float  # mean over their tokens
    masked: float  # share of their tokens to which config.distill gives the weight 0
    masked_paper: float  # the same with the paper's mask
    masked_tokens: tuple[MaskedToken, ...]  # by the paper's mask


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
    spell: Callable[[Sequence[int]], str],
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
        spell: the text of token ids.
    """
    groups = [sampled[i : i + n] for i in range(0, len(sampled), n)]
    successes = np.array([[r.succeeded for r in group] for group in groups])
    rates = successes.mean(axis=1)
    lengths = [len(r.completion.token_ids) for r in sampled]
    masked, _ = _masked(right, distill)
    masked_paper, rhos = _masked(right, PAPER)
    most = sorted(rhos.items(), key=lambda item: (-len(item[1]), item[0]))[:SHOWN_TOKENS]
    log_rho_R = [r.logp_plain_R - r.logp_templated_R for r in right]
    return PromptFigures(
        template=template,
        questions=len(groups),
        per_question=n,
        greedy=_share(np.array([float(r.succeeded) for r in greedy])),
        sampled=_share(rates),
        mixed=float(np.mean((rates > 0) & (rates < 1))),
        unsolved=sum(unsolved),
        rescued=int(np.sum(successes.any(axis=1) & np.array(unsolved))),
        lost=int(np.sum(~successes.any(axis=1) & ~np.array(unsolved))),
        format=float(np.mean([r.verdict.format_score > 0 for r in sampled])),
        stopped=float(np.mean([r.completion.stopped for r in sampled])),
        prompt_tokens=float(np.mean([len(r.prompt_ids) for r in sampled])),
        response_tokens=float(np.mean(lengths)),
        generated_tokens=sum(lengths) + sum(len(r.completion.token_ids) for r in greedy),
        unjudged=sum(r.verdict.status in ("error", "time_out") for r in (*greedy, *sampled)),
        scored=len(right),
        log_rho=float(np.concatenate(log_rho_R).mean()) if right else 0.0,
        masked=masked,
        masked_paper=masked_paper,
        masked_tokens=tuple(
            MaskedToken(spell([i]), len(of), float(np.median(of))) for i, of in most
        ),
    )


def best(measured: Sequence[PromptFigures]) -> PromptFigures | None:
    """The template with the highest success at the training temperature; None without templates."""
    return max(measured[1:], key=lambda m: m.sampled.mean, default=None)


def verdict(measured: Sequence[PromptFigures]) -> str:
    """Whether P²O would help, in one line."""
    plain, top = measured[0], best(measured)
    rate = f"plainly {_text(plain.sampled.mean)} of responses are right"
    mixed = f"{_text(plain.mixed)} of groups are mixed"
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
    better = top.sampled.low > plain.sampled.high or _is_shown(top, len(measured) - 1)
    if better and top.rescued:
        return (
            f"P²O can help: {rate}, under template {number} {_text(top.sampled.mean)}; it solves"
            f" {rescued}"
        )
    if top.rescued > 1 and top.sampled.mean > plain.sampled.mean:
        return (
            f"not clear: {rate}, under template {number} {_text(top.sampled.mean)}; it solves"
            f" {rescued}, which may be chance: try more questions or other templates"
        )
    return (
        f"P²O needs better templates: {rate}, under the best of {len(measured) - 1}"
        f" {_text(top.sampled.mean)}; it solves {rescued}"
    )


def _is_shown(top: PromptFigures, templates: int) -> bool:
    """Whether a template solves more questions than the plain prompt by a sign test: as many
    rescued ones among those that differ have a chance below 2.5 %, divided by the number of
    templates that it is the best of.
    """
    differ = top.rescued + top.lost
    chance = sum(math.comb(differ, k) for k in range(top.rescued, differ + 1)) / 2**differ
    return chance < SIGN_TEST / templates


def recommendation(measured: Sequence[PromptFigures], distill: DistillConfig) -> str:
    """What to set in config.distill, in one line; empty where nothing was scored."""
    top = best([measured[0], *(m for m in measured[1:] if m.scored)])
    if top is None:
        return ""
    if top.masked > MAX_MASKED:
        return (
            f"set distill.eps_low=1.0: distill.mode={distill.mode} with eps_low={distill.eps_low}"
            f" masks {_text(top.masked)} of the tokens of right responses"
        )
    paper = f"the paper's mask, eps_low={PAPER.eps_low}, drops {_text(top.masked_paper)} of them"
    return (
        f"keep distill.mode={distill.mode}, eps_low={distill.eps_low}: it masks"
        f" {_text(top.masked)} of the tokens of right responses; {paper}"
    )


def table(measured: Sequence[PromptFigures], cfg: Config, available: int) -> str:
    """Everything as Markdown."""
    first = measured[0]
    head = (
        f"{first.questions} of {available} questions, greedily and {first.per_question} times at"
        f" temperature {cfg.rollout.temperature:g}; shares in %, with 95 % intervals"
    )
    rows = [
        "| | prompt | greedy | sampled | mixed | rescued | format | ended | masked (.99)"
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
            _percent(m.masked_paper) if m.scored else "",
            f"{m.prompt_tokens:.0f}",
            f"{m.response_tokens:.1f}",
        ]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    names = [
        f"template {i}: the paper's mask drops in {m.scored} right responses:"
        f" {_names(m.masked_tokens)}"
        for i, m in enumerate(measured)
        if m.masked_tokens
    ]
    if unjudged := sum(m.unjudged for m in measured):
        names.append(f"!!! {unjudged} responses could not be judged, by errors or time-outs")
    cost = sum(m.generated_tokens for m in measured)
    advice = recommendation(measured, cfg.distill)
    lines = [*names, f"{cost:,} tokens generated", "", verdict(measured)]
    return "\n".join([head, "", *rows, "", *lines, *([advice] if advice else []), ""])


def _masked(
    right: Sequence[RightResponse], distill: DistillConfig
) -> tuple[float, dict[int, list[float]]]:
    """(share of tokens with weight 0, their rhos by token id)."""
    rhos: dict[int, list[float]] = defaultdict(list)
    for r in right:
        rho_R = density_ratio(r.logp_plain_R, r.logp_templated_R)
        weight_R = distill_weights(r.logp_plain_R, r.logp_templated_R, distill)
        for i in np.flatnonzero(weight_R == 0):
            rhos[int(r.token_ids[i])].append(float(rho_R[i]))
    total = sum(len(r.token_ids) for r in right)
    return sum(map(len, rhos.values())) / max(total, 1), rhos


def _share(value_Q: np.ndarray) -> Share:
    mean = float(value_Q.mean())
    interval = estimates.interval_of_mean(mean, estimates.standard_error(value_Q), len(value_Q))
    return Share(mean, *interval)


def _names(tokens: Sequence[MaskedToken]) -> str:
    return ", ".join(f"{t.token!r} {t.count} times (rho {t.rho:.1g})" for t in tokens)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def _text(share: float) -> str:
    return f"{_percent(share)} %"


def _cell(template: str, width: int = 40) -> str:
    text = " ".join(template.split()).replace("|", "\\|")
    return text if len(text) <= width else text[: width - 1] + "…"
