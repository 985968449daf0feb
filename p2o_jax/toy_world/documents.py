"""Pretraining documents: a prompt with a response, most of them a question under a template, some
of them reflections.

At each step of a chain the response goes on with some probability, or bluffs: `so \\boxed{ random
}`. The probability depends on how well the template fits the question (`phrases.Phrases.level`);
under plain and misfitting prompts the product over the chain is the dial
`config.WorldConfig.p_chain_plain`.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from p2o_jax.gepa.reflection import compact_prompt
from p2o_jax.toy_world import families, phrases
from p2o_jax.toy_world.languages import Language

GO_ON: dict[phrases.Level, tuple[float, float]] = {  # (at the first step, at later ones)
    "strong": (0.97, 0.985),
    "weak": (0.7, 0.8),
    "generic": (0.4, 0.5),
}
FIRST_PLAIN = 0.05
# a single decision under a plain prompt is not made rarer than this while the others can bear it
LEAST_PLAIN = 0.02

# of question documents: no template; a fitting phrase among 1-3; the rest: 1-3 random phrases
P_PLAIN, P_FITTING = (
    0.25,
    0.55,
)
P_EMPTY_INSTRUCTION = 0.25  # of reflection documents
P_HIDDEN_ANSWERS = 0.1  # of reflection documents: as with config.gepa.show_reference_answer off
EXAMPLES = 3  # in a reflection document


@dataclass(frozen=True)
class Document:
    """A prompt, as the user's message, and the response to it; `weights` of words of the
    response in the loss, 1 where not named.
    """

    prompt: str
    response: str
    weights: Mapping[int, float] = field(default_factory=dict)


def go_on_probabilities(
    level: phrases.Level, num_steps: int, p_chain_plain: float
) -> tuple[float, ...]:
    """The probability of each of a chain's steps, given those before it.

    At level "none" the product is the dial: the first step has .05 and the others share the rest
    evenly; where that would leave less than .02 (or more than 1) for each of them, all steps share
    the dial evenly. So every single decision stays above the ratio mask's bound of .01 for dials
    down to 1e-6 (three steps) or 1e-10 (five).
    """
    if num_steps == 0:
        return ()
    if level != "none":
        first, later = GO_ON[level]
        return (first,) + (later,) * (num_steps - 1)
    later = (p_chain_plain / FIRST_PLAIN) ** (1 / max(num_steps - 1, 1))
    if num_steps == 1 or not LEAST_PLAIN <= later <= 1:
        return (p_chain_plain ** (1 / num_steps),) * num_steps
    return (FIRST_PLAIN,) + (later,) * (num_steps - 1)


def prompt(template: str, question: str) -> str:
    """T(x, z), the user's message."""
    return f"{template.strip()}\n\n{question}" if template.strip() else question


def correct_response(problem: families.Problem) -> str:
    """The whole chain with the answer."""
    return " ".join([*problem.steps, families.box(problem.answer)])


def respond(
    rng: random.Random,
    language: Language,
    problem: families.Problem,
    wanted: Sequence[float],
    drawn: Sequence[float],
) -> tuple[str, dict[int, float]]:
    """A response that takes each step with its probability `drawn` (or bluffs), and the weights
    that make it teach those `wanted`.

    Importance weights: a word that goes on counts wanted / drawn, a word that turns away (1 -
    wanted) / (1 - drawn), so the best prediction for a decision, given the steps before it, is
    `wanted`, whichever probabilities the text was drawn with.
    """
    words: list[str] = []
    weights = {}
    for step, p, q in zip(problem.steps, wanted, drawn, strict=True):
        goes_on = rng.random() < q
        if p != q:
            weights[len(words)] = p / q if goes_on else (1 - p) / (1 - q)
        if not goes_on:
            return " ".join(
                [*words, families.box(language.families[problem.family].guess(rng))]
            ), weights
        words += step.split()
    return correct_response(problem), weights


def draw_problem(rng: random.Random, language: Language) -> families.Problem:
    """A pretraining problem of a random family."""
    (family,) = rng.choices(
        [*language.families.values()], [family.weight for family in language.families.values()]
    )
    return family.draw(rng, "pretrain")


def draw_template(rng: random.Random, language: Language, family: str) -> tuple[str, ...]:
    """The phrases of a question document's template: none, some with a fitting one among them,
    or random ones.
    """
    kind = rng.random()
    if kind < P_PLAIN:
        return ()
    chosen = list(language.phrases.draw(rng, rng.randint(1, phrases.MAX_PHRASES)))
    if kind < P_PLAIN + P_FITTING and family in language.phrases.strategies:
        fitting = rng.choice(language.phrases.strategies[family])
        if fitting not in chosen:
            chosen[rng.randrange(len(chosen))] = fitting
    return tuple(chosen)


def question_document(rng: random.Random, language: Language, p_chain_plain: float) -> Document:
    """A question under a template, with a response.

    Without a fitting phrase, steps are taken with probability `language.p_shown` and weighted
    (`respond`). Drawn with the wanted probabilities, decisions late in a plain chain would hardly
    ever be seen; the model then took steps already made as evidence of a fitting phrase, and the
    measured P(chain | plain) came out far above the dial.
    """
    problem = draw_problem(rng, language)
    template = draw_template(rng, language, problem.family)
    level = language.phrases.level(problem.family, template)
    wanted = go_on_probabilities(level, len(problem.steps), p_chain_plain)
    drawn = (language.p_shown,) * len(wanted) if level == "none" else wanted
    response, weights = respond(rng, language, problem, wanted, drawn)
    return Document(prompt(phrases.join(template), problem.question), response, weights)


def reflection_document(rng: random.Random, language: Language, p_chain_plain: float) -> Document:
    """An instruction with examples of what came of it, answered with a mutation of the instruction
    in a fence.

    Instructions are made of uniformly random phrases and the mutation does not look at the
    examples: nothing in these documents tells which phrase helps which question.
    """
    empty, hidden = rng.random() < P_EMPTY_INSTRUCTION, rng.random() < P_HIDDEN_ANSWERS
    template = () if empty else language.phrases.draw(rng, rng.randint(1, phrases.MAX_PHRASES))
    examples = []
    for _ in range(EXAMPLES):
        problem = draw_problem(rng, language)
        chances = go_on_probabilities(
            language.phrases.level(problem.family, template), len(problem.steps), p_chain_plain
        )
        output, _ = respond(rng, language, problem, chances, chances)
        right = output.endswith(families.box(problem.answer))
        examples.append((problem.question, output, right, "" if hidden else problem.answer))
    reply = phrases.join(language.phrases.mutate(rng, template))
    return Document(compact_prompt(phrases.join(template), examples), f"``` {reply} ```")
