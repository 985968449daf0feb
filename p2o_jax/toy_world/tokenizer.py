"""The toy world's vocabulary, and its tokenizer as a Hugging Face directory.

Every word is a token, and so is "\\n\\n".
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers

from p2o_jax.gepa.reflection import compact_prompt
from p2o_jax.toy_world import families, phrases
from p2o_jax.toy_world.languages import Language

PAD, EOS, UNK, USER, ASSISTANT = SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>")
BREAK = "\n\n"
_WORD = r"\n\n|\S+"  # text between two matches is dropped

CHAT_TEMPLATE = (
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}{{ '<user> ' +"
    " message['content'] + ' ' }}{%- elif message['role'] == 'assistant' -%}{{ '<assistant> ' +"
    " message['content'] + ' <eos>' }}{%- else -%}{{ raise_exception('the world has no role ' +"
    " message['role']) }}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{"
    " '<assistant>' }}{%- endif -%}"
)


def vocabulary(language: Language) -> tuple[str, ...]:
    """All tokens of the language, in order of their ids.

    Padded with unused tokens to a multiple of 8, so that the vocabulary can be sharded.
    """
    fixed = (*SPECIAL, BREAK, *families.DIGITS, *families.LETTERS, *language.words)
    text = " ".join(
        [
            *language.phrases.all,
            phrases.SEPARATOR,
            compact_prompt("", [("", "", right, "0") for right in (True, False)]),
        ]
    )
    words = dict.fromkeys([*fixed, *sorted(set(split(text)))])
    unused = [f"<unused{i}>" for i in range(-len(words) % 8)]
    return (*words, *unused)


def split(text: str) -> list[str]:
    """Splits a text into words as the tokenizer does."""
    return re.findall(_WORD, text)


def chat_words(prompt: str) -> list[str]:
    """The words of a prompt rendered by the chat template, up to the beginning of the response."""
    return [USER, *split(prompt), ASSISTANT]


def write_tokenizer(directory: str | Path, language: Language) -> None:
    """Writes tokenizer.json and tokenizer_config.json for transformers.AutoTokenizer.

    Decoding puts single spaces between words, and so restores a text of words exactly.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _tokenizer(vocabulary(language)).save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNK,
        "additional_special_tokens": [USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _tokenizer(words: Sequence[str]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNK)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        tokenizers.Regex(_WORD), behavior="removed", invert=True
    )
    tokenizer.add_special_tokens([tokenizers.AddedToken(word, special=True) for word in SPECIAL])
    return tokenizer
