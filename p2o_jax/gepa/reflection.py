"""The prompt of the reflecting model: the current template and a minibatch of answers with feedback
(algorithm step 3c).
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from p2o_jax import config

MARKER = "\n[... middle of the response left out ...]\n"
COMPACT_OUTPUT_WORDS = 6
FAILURE_TOKENS = 200  # limit of a response without an answer, if cuts are needed
MIN_TOKENS = 16  # with fewer per response, examples are dropped instead

CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class ReflectionExample:
    """One response of a minibatch, as the reflecting model sees it."""

    question: str
    output: str
    score: float
    format_score: float
    answer: str
    right: bool
    comment: str = ""  # message of a custom reward function; replaces the default feedback

    @property
    def unreadable(self) -> bool:
        """Whether no final answer could be read from the response."""
        return not self.right and self.format_score <= 0.5


@dataclass(frozen=True)
class ReflectionPrompt:
    """A reflection prompt, and what was cut to make it fit."""

    text: str  # empty: not even one example fits
    num_cut: int  # responses cut in the middle
    num_dropped: int  # examples left out


SKIPPED = ReflectionPrompt("", 0, 0)  # not built


def build(
    template: str,
    examples: Sequence[ReflectionExample],
    cfg: config.GepaConfig,
    count_tokens: CountTokens,
) -> ReflectionPrompt:
    """Returns the reflection prompt in `cfg.prompt_style`, at most `cfg.reflect_prompt_tokens`
    long.

    Responses are cut first (paper style). If that is not enough, trailing examples are dropped.
    """
    shown = list(examples)
    while shown:
        if cfg.prompt_style == "compact":
            groups = [
                (e.question, e.output, e.right, e.answer if cfg.show_reference_answer else "")
                for e in shown
            ]
            text, num_cut = compact_prompt(template, groups), 0
        else:
            text, num_cut = _fit(template, shown, cfg, count_tokens)
        if count_tokens(text) <= cfg.reflect_prompt_tokens:
            return ReflectionPrompt(text, num_cut, len(examples) - len(shown))
        shown.pop()
    return ReflectionPrompt("", 0, len(examples))


def least_tokens(
    question: str, answer: str, cfg: config.GepaConfig, count_tokens: CountTokens, comment: str = ""
) -> int:
    """Returns the tokens of the shortest reflection prompt about a question: with the empty
    template and an empty response.

    Args:
        question: text of the question.
        answer: reference answer.
        cfg: settings of GEPA.
        count_tokens: tokens of a text, as the reflecting model counts them.
        comment: message of a custom reward function.
    """
    unlimited = replace(cfg, reflect_prompt_tokens=sys.maxsize)
    examples = [
        ReflectionExample(question, "", float(right), 1.0, answer, right, comment)
        for right in (True, False)
    ]
    return min(
        count_tokens(build("", [example], unlimited, count_tokens).text) for example in examples
    )


def compact_prompt(template: str, examples: Sequence[tuple[str, str, bool, str]]) -> str:
    """Returns a very short reflection prompt, for tiny models. An example is (question, output,
    right, answer).

    It is one line with single spaces: the template between fences, and the last six words of each
    output. An empty answer is not shown.
    """
    words = ["instruction", "```", *template.split(), "```"]
    for question, output, right, answer in examples:
        words += ["question", *question.split(), "output", *output.split()[-COMPACT_OUTPUT_WORDS:]]
        words += ["feedback", "right" if right else "wrong"]
        words += ["expected", *answer.split()] if answer.strip() else []
    return " ".join([*words, "write", "a", "better", "instruction"])


def paper_prompt(template: str, examples: Sequence[ReflectionExample], show_answer: bool) -> str:
    """Returns the paper's reflection prompt: GEPA's own wording around the template and the
    examples.

    Both are inserted at once, so a template that contains a placeholder changes nothing.
    """
    blocks = []
    for i, e in enumerate(examples, 1):
        parts = {
            "Inputs": e.question,
            "Generated Outputs": e.output,
            "Feedback": feedback(e, show_answer),
        }
        blocks.append(
            f"# Example {i}\n"
            + "".join(f"## {name}\n{part.strip()}\n\n" for name, part in parts.items())
        )
    before, rest = meta_prompt().split("<curr_param>")
    between, after = rest.split("<side_info>")
    return before + template + between + "\n\n".join(blocks) + after


@functools.cache
def meta_prompt() -> str:
    """Returns the `gepa` package's default reflection prompt, with the placeholders <curr_param>
    and <side_info>.
    """
    from gepa.strategies.instruction_proposal import InstructionProposalSignature

    return InstructionProposalSignature.default_prompt_template


def feedback(example: ReflectionExample, show_answer: bool) -> str:
    """Returns what is wrong with the response, the reference answer unless it is hidden, and the
    score.
    """
    reference = (
        f" The reference answer is {example.answer}." if show_answer and example.answer else ""
    )
    if example.comment:
        verdict = f"{example.comment.strip()}{reference}"
    elif example.right:
        verdict = f"The final answer is correct.{reference}"
    elif example.unreadable:
        verdict = (
            "No final answer could be read from the response: the \\boxed{} with the answer is"
            f" missing, or the response never reached it.{reference} Look at the reasoning as well"
            " as at the form of the answer."
        )
    else:
        verdict = (
            f"The final answer is wrong.{reference} Look for the step at which the reasoning fails."
        )
    return f"{verdict}\nScore: {example.score:.2f}"


def _fit(
    template: str,
    examples: Sequence[ReflectionExample],
    cfg: config.GepaConfig,
    count_tokens: CountTokens,
) -> tuple[str, int]:
    """Returns the paper's prompt with responses cut until it fits, and how many were cut. It is too
    long if they cannot be cut enough.
    """

    def render(outputs: Sequence[str]) -> str:
        cut = [replace(e, output=output) for e, output in zip(examples, outputs, strict=True)]
        return paper_prompt(template, cut, cfg.show_reference_answer)

    whole = [e.output.strip() for e in examples]
    text = render(whole)
    if count_tokens(text) <= cfg.reflect_prompt_tokens:
        return text, 0
    sizes = [count_tokens(output) for output in whole]
    available = cfg.reflect_prompt_tokens - count_tokens(render([""] * len(whole)))
    while available >= sum(min(size, MIN_TOKENS) for size in sizes):
        limits = _shares(sizes, [e.unreadable for e in examples], available)
        outputs = [
            cut_middle(output, limit, count_tokens)
            for output, limit in zip(whole, limits, strict=True)
        ]
        text = render(outputs)
        if count_tokens(text) <= cfg.reflect_prompt_tokens:
            return text, sum(a != b for a, b in zip(whole, outputs, strict=True))
        available = (
            available * 9 // 10
        )  # tokens of the parts do not exactly add up to those of the whole
        if available == 0:
            break
    return text, 0


def _shares(sizes: Sequence[int], unreadable: Sequence[bool], available: int) -> list[int]:
    """Returns the tokens that each response may keep: all of short ones, equal parts of the rest
    for the others.

    Responses without an answer keep at most 200 tokens and half an equal part.
    """
    hard_cap = max(min(FAILURE_TOKENS, available // (2 * len(sizes))), 1)
    wanted = [
        min(size, hard_cap) if bad else size for size, bad in zip(sizes, unreadable, strict=True)
    ]
    shares = [0] * len(sizes)
    for done, i in enumerate(sorted(range(len(sizes)), key=lambda i: (wanted[i], i))):
        shares[i] = min(wanted[i], available // (len(sizes) - done))
        available -= shares[i]
    return shares


def cut_middle(text: str, limit: int, count_tokens: CountTokens) -> str:
    """Returns the text, or its head and tail with a marker between, in at most `limit` tokens;
    empty if the marker does not fit.
    """
    size = count_tokens(text)
    if size <= limit:
        return text
    keep = len(text) * max(limit, 0) // size
    while keep > 0:
        head = (keep + 1) // 2
        cut = text[:head].rstrip() + MARKER + text[len(text) - (keep - head) :].lstrip()
        size = count_tokens(cut)
        if size <= limit:
            return cut
        keep = min(keep - 1, keep * limit // size)
    return ""
