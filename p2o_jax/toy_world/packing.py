"""Packs documents into rows of token ids. Each document of a row is a segment of its own."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from p2o_jax.toy_world import tokenizer
from p2o_jax.toy_world.documents import Document
from p2o_jax.toy_world.languages import Language

PROMPT_WEIGHT = 0.03  # of the prompt's tokens in the loss; the response's tokens weigh 1
TEMPLATE_WEIGHT = 0.2  # of the template's tokens, so that the model learns whole phrases
_PATIENCE = 6  # the rows are full after this number of documents that do not fit


class Batch(NamedTuple):
    """Rows of documents. Segment 0 is padding. `weight_BT` weighs the prediction of each token."""

    token_BT: Int[np.ndarray, "B T"]
    position_BT: Int[np.ndarray, "B T"]
    segment_BT: Int[np.ndarray, "B T"]
    weight_BT: Float[np.ndarray, "B T"]


def ids_of_words(language: Language) -> dict[str, int]:
    """The id of each token of the language."""
    return {word: i for i, word in enumerate(tokenizer.vocabulary(language))}


def encode(document: Document, ids: Mapping[str, int]) -> tuple[list[int], list[float]]:
    """Returns the document's token ids and their weights in the loss.

    The tokens are `<user> prompt <assistant> response <eos>`.
    """
    prompt = tokenizer.chat_words(document.prompt)
    response = [*tokenizer.split(document.response), tokenizer.EOS]
    template = prompt.index(tokenizer.BREAK) if tokenizer.BREAK in prompt else 0
    weights = (
        [TEMPLATE_WEIGHT] * template
        + [PROMPT_WEIGHT] * (len(prompt) - template)
        + [1.0] * len(response)
    )
    for index, weight in document.weights.items():
        weights[len(prompt) + index] = weight
    return [ids[word] for word in (*prompt, *response)], weights


def empty(rows: int, length: int) -> Batch:
    """Rows of padding."""
    token, position, segment = (np.zeros((rows, length), np.int32) for _ in range(3))
    return Batch(token, position, segment, np.zeros((rows, length), np.float32))


class Packer:
    """Fills batches of a fixed shape with drawn documents, first fit.

    Documents that do not fit are put first into the next batch. Long documents are therefore as
    frequent in the rows as among the drawn documents.
    """

    def __init__(self, rows: int, length: int, language: Language, draw: Callable[[], Document]):
        self.rows, self.length, self.draw = rows, length, draw
        self.ids = ids_of_words(language)
        self.waiting: list[tuple[list[int], list[float]]] = []

    def batch(self) -> Batch:
        """The next batch.

        Raises:
            ValueError: a document is longer than a row.
        """
        rows = empty(self.rows, self.length)
        used, count = [0] * self.rows, [0] * self.rows
        waiting, self.waiting = self.waiting, []
        while waiting or len(self.waiting) < _PATIENCE:
            token, weight = waiting.pop(0) if waiting else encode(self.draw(), self.ids)
            size = len(token)
            if size > self.length:
                raise ValueError(
                    f"a document of {size} tokens does not fit into rows of"
                    f" config.world.row_tokens={self.length}"
                )
            row = next((r for r in range(self.rows) if used[r] + size <= self.length), None)
            if row is None:
                self.waiting.append((token, weight))
                continue
            count[row] += 1
            place = np.s_[row, used[row] : used[row] + size]
            rows.token_BT[place], rows.weight_BT[place] = token, weight
            rows.position_BT[place], rows.segment_BT[place] = np.arange(size), count[row]
            used[row] += size
        return rows
