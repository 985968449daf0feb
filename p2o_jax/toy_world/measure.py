"""Measures the base model by teacher forcing.

Unlike sampling, this is exact for probabilities as small as 1e-5.
"""

import functools
import random
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from p2o_jax.models import transformer
from p2o_jax.models.spec import ModelSpec
from p2o_jax.toy_world import documents, families, packing, tokenizer
from p2o_jax.toy_world.languages import Language

ROWS = 64  # sequences per batch


def chain_figures(
    spec: ModelSpec,
    params: Any,
    language: Language,
    seed: int,
    row_tokens: int,
    num_questions: int = 256,
) -> dict[str, dict[str, Any]]:
    """Measures the model on fresh questions, with the plain prompt and with suitable templates.

    Args:
        spec: the model.
        params: its parameters.
        language: the language of the questions.
        seed: chooses the questions.
        row_tokens: tokens per row; the longest document must fit.
        num_questions: questions per family.

    Returns:
        For each hard family:
        - `p_chain_plain`, and `p_chain_KIND` for each kind of `phrases.Phrases.instructions`: the
          mean probability of the whole correct response, exp(Σ log p), including the end of
          sequence.
        - `greedy_plain` and `greedy_KIND`: the fraction of questions for which greedy decoding
          gives exactly that response.
        - `p_go_on_plain`: for each step, the mean probability of beginning it under the plain
          prompt, given the previous steps.
        - `frac_masked`: the fraction of the response's tokens whose plain probability is below 0.01
          of the templated one. The ratio mask would drop them.
    """
    figures = {}
    for name in language.hard:
        rng = random.Random(f"{seed}/world/probe/{name}")
        problems = [language.families[name].draw(rng, "probe") for _ in range(num_questions)]
        scored = {
            kind: score(spec, params, language, _chains(templates, problems), row_tokens)
            for kind, templates in {"plain": [""], **language.phrases.instructions(name)}.items()
        }
        plain, strong = scored["plain"][0], scored["strong"][0]
        starts = np.cumsum([0] + [len(step.split()) for step in problems[0].steps[:-1]])
        figures[name] = {
            **{f"p_chain_{kind}": _mean_of_products(logp) for kind, (logp, _) in scored.items()},
            **{f"greedy_{kind}": _share(greedy) for kind, (_, greedy) in scored.items()},
            "p_go_on_plain": [
                float(np.mean(np.exp([logp[start] for logp in plain]))) for start in starts
            ],
            "frac_masked": float(
                np.mean(np.concatenate(plain) - np.concatenate(strong) < np.log(0.01))
            ),
        }
    return figures


def score(
    spec: ModelSpec,
    params: Any,
    language: Language,
    docs: Sequence[documents.Document],
    row_tokens: int,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scores the response tokens of documents.

    Args:
        spec: the model.
        params: its parameters.
        language: the language of the documents.
        docs: the documents.
        row_tokens: tokens per row; the longest document must fit.

    Returns:
        Two lists with an array per document: the log-probs of its response tokens, and whether each
        of them is the most likely token.
    """
    ids = packing.ids_of_words(language)
    logps, firsts = [], []
    for begin in range(0, len(docs), ROWS):
        batch, spans = packing.empty(ROWS, row_tokens), []
        for row, document in enumerate(docs[begin : begin + ROWS]):
            token, _ = packing.encode(document, ids)
            batch.token_BT[row, : len(token)] = token
            batch.position_BT[row, : len(token)] = np.arange(len(token))
            batch.segment_BT[row, : len(token)] = 1
            spans.append(slice(len(tokenizer.chat_words(document.prompt)), len(token)))
        logp_BT, first_BT = map(np.asarray, _score_rows(spec, params, *batch[:3]))
        logps += [logp_BT[row, span] for row, span in enumerate(spans)]
        firsts += [first_BT[row, span] for row, span in enumerate(spans)]
    return logps, firsts


@functools.partial(jax.jit, static_argnums=0)
def _score_rows(
    spec: ModelSpec,
    params: Any,
    token_BT: Int[Array, "B T"],
    position_BT: Int[Array, "B T"],
    segment_BT: Int[Array, "B T"],
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Log-probs of the tokens, and whether each is the most likely one.

    Args:
        spec: the model.
        params: its parameters.
        token_BT: token ids.
        position_BT: positions in the sequences.
        segment_BT: 1 for tokens and 0 for padding.
    """
    x_BTD, *_ = transformer.hidden(
        spec, params, token_BT, position_BT, transformer.within_segments(segment_BT)
    )
    logp_BTV = jax.nn.log_softmax(transformer.logits(spec, params, x_BTD[:, :-1]))
    target_BT = token_BT[:, 1:]
    logp_BT = jnp.take_along_axis(logp_BTV, target_BT[..., None], axis=-1)[..., 0]
    first_BT = jnp.argmax(logp_BTV, axis=-1) == target_BT
    return jnp.pad(logp_BT, ((0, 0), (1, 0))), jnp.pad(first_BT, ((0, 0), (1, 0)))


def _chains(
    templates: Sequence[str], problems: Sequence[families.Problem]
) -> list[documents.Document]:
    """Correct responses to the problems under the templates in turn."""
    return [
        documents.Document(
            documents.prompt(templates[i % len(templates)], problem.question),
            documents.correct_response(problem),
        )
        for i, problem in enumerate(problems)
    ]


def _mean_of_products(logps: Sequence[np.ndarray]) -> float:
    return float(np.mean(np.exp([logp.sum(dtype=np.float64) for logp in logps])))


def _share(firsts: Sequence[np.ndarray]) -> float:
    return float(np.mean([first.all() for first in firsts]))
