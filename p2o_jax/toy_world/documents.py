"""Pretraining documents, each a prompt with a response.

Most prompts are a question under a template; some are reflection prompts.

Before each step of a chain, the response continues with some probability or else bluffs with
`so \\boxed{ random }`. The probability depends on how well the template suits the question
(`phrases.Phrases.level`). Without a suitable phrase, the product over the chain is
`config.WorldConfig.p_chain_plain`.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from p2o_jax.gepa.reflection import compact_prompt
from p2o_jax.toy_world import families, phrases
from p2o_jax.toy_world.languages import Language

STEP_PROBABILITIES: dict[phrases.Level, tuple[float, float]] = {  # (of the first step, of others)
    "strong": (0.97, 0.985),
    "weak": (0.7, 0.8),
    "generic": (0.4, 0.5),
    "part": (0.1, 0.985),
}
LEAST_PLAIN = 0.02  # the lowest probability of a later step under a plain prompt, where possible

# Fractions of question documents without a template, and with suitable phrases. The others have
# random phrases.
P_PLAIN, P_FITTING = 0.25, 0.55
P_EMPTY_INSTRUCTION = 0.25  # fraction of reflection documents
P_HIDDEN_ANSWERS = 0.1  # fraction of reflection documents, as without gepa.show_reference_answer
EXAMPLES = 3  # in a reflection document


@dataclass(frozen=True)
class Document:
    """A prompt (the user's message) and its response.

    `weights` maps indices of words of the response to their weights in the loss; others weigh 1.
    """

    prompt: str
    response: str
    weights: Mapping[int, float] = field(default_factory=dict)


def step_probabilities(
    level: phrases.Level, num_steps: int, p_chain_plain: float, gate: float = 0.05
) -> tuple[float, ...]:
    """The probability of each step of a chain, given the previous steps.

    At the level "none", their product is `p_chain_plain`. The first step has the probability
    `gate`, and the others share the rest evenly. If they would get less than 0.02 or more than 1
    each, all steps share `p_chain_plain` evenly. With a gate of 0.05, each probability then stays
    above the ratio mask's bound of 0.01 for values of `p_chain_plain` down to 1e-6 (three steps) or
    1e-10 (five steps).
    """
    if num_steps == 0:
        return ()
    if level != "none":
        first, later = STEP_PROBABILITIES[level]
        return (first,) + (later,) * (num_steps - 1)
    later = (p_chain_plain / gate) ** (1 / max(num_steps - 1, 1))
    if num_steps == 1 or not LEAST_PLAIN <= later <= 1:
        return (p_chain_plain ** (1 / num_steps),) * num_steps
    return (gate,) + (later,) * (num_steps - 1)


def chances(
    language: Language, problem: families.Problem, template: Sequence[str], p_chain_plain: float
) -> tuple[float, ...]:
    """The probability of each step of a problem's chain under a template's phrases."""
    level = language.phrases.level(problem.family, template, problem.parts)
    gate = language.named[problem.family].gate
    return step_probabilities(level, len(problem.steps), p_chain_plain, gate)


def prompt(template: str, question: str) -> str:
    """T(x, z) as the user's message."""
    return f"{template.strip()}\n\n{question}" if template.strip() else question


def correct_response(problem: families.Problem) -> str:
    """The whole chain, followed by the answer."""
    return " ".join([*problem.steps, families.box(problem.answer)])


def respond(
    rng: random.Random,
    language: Language,
    problem: families.Problem,
    wanted: Sequence[float],
    drawn: Sequence[float],
) -> tuple[str, dict[int, float]]:
    """Draws a response, and importance weights for the words that decide between step and bluff.

    A word that begins a step has the weight wanted / drawn, and a word that begins a bluff has
    (1 - wanted) / (1 - drawn). The best prediction of a decision, given the previous steps, is then
    `wanted`, regardless of `drawn`.

    Args:
        rng: the source of randomness.
        language: the language of the response.
        problem: the problem to answer.
        wanted: for each step, the probability that the model should learn.
        drawn: for each step, the probability of taking it in this response.

    Returns:
        The response, and weights by index of word, as in `Document.weights`.
    """
    words: list[str] = []
    weights = {}
    for step, p, q in zip(problem.steps, wanted, drawn, strict=True):
        continues = rng.random() < q
        if p != q:
            weights[len(words)] = p / q if continues else (1 - p) / (1 - q)
        if not continues:
            guess = language.named[problem.family].guess(rng, len(problem.answer.split()))
            return " ".join([*words, families.box(guess)]), weights
        words += step.split()
    return correct_response(problem), weights


def draw_problem(rng: random.Random, language: Language) -> families.Problem:
    """A pretraining problem of a random family."""
    several = language.pretrained
    (family,) = rng.choices(several, [family.weight for family in several])
    return family.draw(rng, "pretrain")


def draw_template(rng: random.Random, language: Language, family: str) -> tuple[str, ...]:
    """Draws the phrases of a question document's template: none, suitable and random ones, or
    random ones.
    """
    kind = rng.random()
    if kind < P_PLAIN:
        return ()
    chosen = language.phrases.draw(rng, rng.randint(1, language.phrases.max_phrases))
    if kind < P_PLAIN + P_FITTING and family in language.phrases.strategies:
        return language.phrases.fitting(rng, family, chosen)
    return chosen


def question_document(rng: random.Random, language: Language, p_chain_plain: float) -> Document:
    """Draws a question under a template, with a response.

    Without a suitable phrase, steps are taken with probability `language.p_shown` and weighted (see
    `respond`). If they were drawn with the wanted probabilities, late decisions of a plain chain
    would be very rare. The model would then take earlier steps as evidence of a suitable phrase,
    and the measured P(chain | plain) would be far above `p_chain_plain`.
    """
    problem = draw_problem(rng, language)
    template = draw_template(rng, language, problem.family)
    level = language.phrases.level(problem.family, template, problem.parts)
    wanted = chances(language, problem, template, p_chain_plain)
    drawn = (language.p_shown,) * len(wanted) if level == "none" else wanted
    response, weights = respond(rng, language, problem, wanted, drawn)
    return Document(prompt(phrases.join(template), problem.question), response, weights)


def reflection_document(rng: random.Random, language: Language, p_chain_plain: float) -> Document:
    """Draws a reflection prompt, answered with a mutated instruction in a fence.

    The prompt has an instruction and examples of its results. Instructions consist of uniformly
    random phrases, and the mutation ignores the examples. These documents therefore do not reveal
    which phrase helps which question.
    """
    empty, hidden = rng.random() < P_EMPTY_INSTRUCTION, rng.random() < P_HIDDEN_ANSWERS
    count = 0 if empty else rng.randint(1, language.phrases.max_phrases)
    template = language.phrases.draw(rng, count)
    examples = []
    for _ in range(EXAMPLES):
        problem = draw_problem(rng, language)
        wanted = chances(language, problem, template, p_chain_plain)
        output, _ = respond(rng, language, problem, wanted, wanted)
        right = output.endswith(families.box(problem.answer))
        examples.append((problem.question, output, right, "" if hidden else problem.answer))
    reply = phrases.join(language.phrases.mutate(rng, template))
    return Document(compact_prompt(phrases.join(template), examples), f"``` {reply} ```")
