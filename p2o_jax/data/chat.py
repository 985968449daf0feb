"""Prompts: T(x, z) as token ids, through the model's own tokenizer and chat template; and token ids back to text."""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from p2o_jax import config
from p2o_jax.records import Message, Question

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")  # stop a rollout where they are special tokens
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_HALF_PAIR = re.compile("[\ud800-\udfff]")  # not UTF-8: an endpoint's reply may hold them, and tokenizers refuse them
CACHED_PROMPTS = 1 << 14


class TextCodec(Protocol):
    """What `Chat` needs of a tokenizer. `stop_ids` end a response; `pad_id` is any valid id: masks come from lengths."""

    stop_ids: tuple[int, ...]
    pad_id: int
    special_tokens: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """The ids of a text as it stands, nothing added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""
        ...

    def apply_template(self, messages: Sequence[Message], template: str, enable_thinking: bool) -> str:
        """The messages and the opening of the assistant's turn, by the Jinja template (empty: the tokenizer's own)."""
        ...


class Tokenizer:
    """A TextCodec over one of transformers' fast tokenizers."""

    def __init__(self, hf: Any, eos_ids: Iterable[int] = ()):
        self.hf = hf
        special = {token.content: i for i, token in hf.added_tokens_decoder.items() if token.special}
        self.special_tokens = tuple(sorted(special))
        ends = [special[name] for name in END_OF_TURN if name in special]
        own = [] if hf.eos_token_id is None else [hf.eos_token_id]
        self.stop_ids = tuple(sorted({*eos_ids, *own, *ends}))
        pad_id = hf.pad_token_id
        self.pad_id = int(pad_id if pad_id is not None else next(iter([*own, *self.stop_ids, 0])))

    @property
    def has_template(self) -> bool:
        return bool(self.hf.chat_template)

    @property
    def token_ids(self) -> dict[str, int]:
        """The id of every token, added tokens included."""
        return self.hf.get_vocab()

    def encode(self, text: str) -> list[int]:
        return self.hf.encode(_HALF_PAIR.sub("\ufffd", text), add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self.hf.backend_tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)  # hf.decode looks at each id again

    def apply_template(self, messages: Sequence[Message], template: str, enable_thinking: bool) -> str:
        """See TextCodec.

        Raises:
            config.ConfigError: there is no template, or it is wrong Jinja, or it refuses these messages.
        """
        from jinja2.exceptions import TemplateError

        if not template and not self.has_template:
            raise config.ConfigError(
                "config.chat.template: this model has no chat template: give one (Jinja, as in tokenizer_config.json; "
                "for a base model {% for m in messages %}{{ m.content }}\\n{% endfor %} shows it the bare text)"
            )
        try:
            return self.hf.apply_chat_template(
                [dict(m) for m in messages],
                chat_template=template or None,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=enable_thinking,
            )
        except TemplateError as e:
            raise config.ConfigError(f"config.chat.template{'' if template else ' (the tokenizer has its own)'}: {e}") from e


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face model directory; the end-of-sequence ids of its generation_config.json stop, too.

    Raises:
        config.ConfigError: no such directory, no tokenizer in it, only a slow one, or no token to stop at.
    """
    path = Path(path)
    where = f"config.model.path={path}"
    if not path.is_dir():
        raise config.ConfigError(f"{where}: no such directory")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise config.ConfigError(f"{where}: no tokenizer files in it (one of {', '.join(TOKENIZER_FILES)})")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # seconds, and most of the package never needs them

    # tokenizer.json is the tokenizer that the model was trained with. AutoTokenizer would go by config.json's model type instead and
    # put that family's own pre-tokenizer in its place; it is for directories that are still to be converted.
    loader = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
    try:
        hf = loader.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as e:  # the edge: damaged files raise whatever the reader of their format raises, bare Exception included
        if "trust_remote_code" in str(e):
            raise config.ConfigError(
                f"{where}: the tokenizer cannot be loaded: it is code of its own (auto_map in tokenizer_config.json or config.json), "
                "which is never run; convert it to a tokenizer.json"
            ) from e
        raise config.ConfigError(f"{where}: the tokenizer cannot be loaded: {type(e).__name__}: {e}") from e
    if not hf.is_fast:
        raise config.ConfigError(f"{where}: {type(hf).__name__} is not one of transformers' fast tokenizers")
    tokenizer = Tokenizer(hf, _generation_eos_ids(path / "generation_config.json"))
    if not tokenizer.stop_ids:
        raise config.ConfigError(f"{where}: no end-of-sequence token in generation_config.json or in the tokenizer: no response would end")
    return tokenizer


def _generation_eos_ids(path: Path) -> list[int]:
    if not path.is_file():
        return []
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["eos_token_id"]
    except KeyError:
        return []
    except (TypeError, ValueError) as e:
        raise config.ConfigError(f"config.model.path: {path} is not a JSON object: {e}") from e
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(i) is not int for i in ids):
        raise config.ConfigError(f"config.model.path: {path}: eos_token_id={value!r} must be a token id, or a list of them")
    return ids


class Chat:
    """Renders prompts for one model. Built once; refuses at once what could not render a question later.

    Raises:
        config.ConfigError: the model has no chat template and none is given, or it does not take the system prompt.
    """

    def __init__(self, tokenizer: TextCodec, cfg: config.Chat):
        self.tokenizer = tokenizer
        self.cfg = cfg
        self.stop_ids = tokenizer.stop_ids
        self.pad_id = tokenizer.pad_id
        self._ids = functools.lru_cache(CACHED_PROMPTS)(self._encode_messages)  # the same questions come back every epoch
        self.render_text("?")

    def render(self, question: Question, template: str = "") -> tuple[int, ...]:
        """The ids of T(x, z), up to and with the opening of the assistant's turn."""
        return self._ids(_frozen(templated(question.messages, template)))

    def render_text(self, text: str) -> tuple[int, ...]:
        """The ids of a prompt with `text` as its only user message."""
        return self._ids(_frozen([{"role": "user", "content": text}]))

    def prompt_text(self, question: Question, template: str = "") -> str:
        """T(x, z) as the text whose ids `render` returns."""
        return self._text(templated(question.messages, template))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids without special tokens, spaces as they are."""
        return self.tokenizer.decode(ids)

    def count_tokens(self, text: str) -> int:
        """The number of tokens of a bare text."""
        return len(self.tokenizer.encode(text))

    def spells_special(self, text: str) -> bool:
        """Whether the text spells a special token, such as the end of a turn, which would be read as that."""
        return any(token in text for token in self.tokenizer.special_tokens)

    def _encode_messages(self, messages: tuple[tuple[tuple[str, str], ...], ...]) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(self._text([dict(m) for m in messages])))

    def _text(self, messages: Sequence[Message]) -> str:
        if self.cfg.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.cfg.system_prompt}, *messages]
        return self.tokenizer.apply_template(messages, self.cfg.template, self.cfg.enable_thinking)


def templated(messages: Sequence[Message], template: str) -> tuple[Message, ...]:
    """T(x, z) as messages: the template before the last user message's text; x itself for an empty template."""
    *before, last = messages
    z = template.strip()
    return (*before, {**last, "content": f"{z}\n\n{last['content']}"} if z else last)


def _frozen(messages: Sequence[Message]) -> tuple[tuple[tuple[str, str], ...], ...]:
    return tuple(tuple(m.items()) for m in messages)
