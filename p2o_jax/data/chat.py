"""Prompts: T(x, z) as token ids, through the model's own tokenizer and chat template; and token
ids back to text.
"""

import datetime
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from p2o_jax import config
from p2o_jax.data.chat_template import ChatTemplate, TemplateFailed
from p2o_jax.types import Message, Question

# stop a rollout where they are special tokens
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
# not UTF-8: an endpoint's reply may hold them, and tokenizers refuse them
_HALF_PAIR = re.compile("[\ud800-\udfff]")
CACHED_PROMPTS = 1 << 14


class TextCodec(Protocol):
    """What `Chat` needs of a tokenizer. `stop_ids` end a response; `pad_id` is any valid id:
    masks come from lengths.
    """

    stop_ids: tuple[int, ...]
    pad_id: int
    special_tokens: tuple[str, ...]
    chat_template: str  # Jinja; empty: none
    template_variables: Mapping[str, Any]  # what a chat template may use: bos_token and the like
    # which transformers puts before every text that is not a chat: a BOS, or none
    prefix_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """The ids of a text as it stands, nothing added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""
        ...

    def spell(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens included."""
        ...


class Tokenizer:
    """A TextCodec over one of transformers' fast tokenizers."""

    def __init__(self, hf: Any, eos_ids: Iterable[int] = ()):
        self.hf = hf
        special = {
            token.content: i for i, token in hf.added_tokens_decoder.items() if token.special
        }
        self.special_tokens = tuple(sorted(special))
        ends = [special[name] for name in END_OF_TURN if name in special]
        own = [] if hf.eos_token_id is None else [hf.eos_token_id]
        self.stop_ids = tuple(sorted({*eos_ids, *own, *ends}))
        pad_id = hf.pad_token_id
        self.pad_id = int(pad_id if pad_id is not None else next(iter([*own, *self.stop_ids, 0])))
        templates = (
            hf.chat_template
            if isinstance(hf.chat_template, dict)
            else {"default": hf.chat_template}
        )
        self.chat_template: str = templates.get("default") or ""
        self.template_variables: Mapping[str, Any] = dict(hf.special_tokens_map)
        self.prefix_ids = self._prefix_ids()

    def _prefix_ids(self) -> tuple[int, ...]:
        bare, whole = self.encode("a"), self.hf.encode("a")
        starts = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
        return tuple(whole[: starts[0]]) if starts else ()

    @property
    def token_ids(self) -> dict[str, int]:
        """The id of every token, added tokens included."""
        return self.hf.get_vocab()

    def encode(self, text: str) -> list[int]:
        return self.hf.encode(_HALF_PAIR.sub("\ufffd", text), add_special_tokens=False)

    def spell(self, ids: Sequence[int]) -> str:
        return self.hf.backend_tokenizer.decode(list(ids), skip_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        # hf.decode looks at each id again
        return self.hf.backend_tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face model directory. Its stop ids include the eos_token_id of
    config.json and generation_config.json.

    Raises:
        config.ConfigError: no such directory, no tokenizer in it, only a slow one, or no token to
        stop at.
    """
    path = Path(path)
    where = f"config.model.path={path}"
    if not path.is_dir():
        raise config.ConfigError(f"{where}: no such directory")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise config.ConfigError(
            f"{where}: no tokenizer files in it (one of {', '.join(TOKENIZER_FILES)})"
        )
    # seconds, and most of the package never needs them
    from transformers import (
        AutoTokenizer,
        PreTrainedTokenizerFast,
    )

    # tokenizer.json is the tokenizer that the model was trained with. AutoTokenizer would go by
    # config.json's model type instead and put that family's own pre-tokenizer in its place; it is
    # for directories that are still to be converted.
    loader = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
    try:
        hf = loader.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as e:  # the edge: damaged files raise whatever the reader of their format raises, bare Exception included
        if "trust_remote_code" in str(e):
            raise config.ConfigError(
                f"{where}: the tokenizer cannot be loaded: it is code of its own (auto_map in"
                " tokenizer_config.json or config.json), which is never run; convert it to a"
                " tokenizer.json"
            ) from e
        raise config.ConfigError(
            f"{where}: the tokenizer cannot be loaded: {type(e).__name__}: {e}"
        ) from e
    if not hf.is_fast:
        raise config.ConfigError(
            f"{where}: {type(hf).__name__} is not one of transformers' fast tokenizers"
        )
    tokenizer = Tokenizer(
        hf, [i for name in ("config.json", "generation_config.json") for i in _eos_ids(path / name)]
    )
    if not tokenizer.stop_ids:
        raise config.ConfigError(
            f"{where}: no end-of-sequence token in config.json, generation_config.json or the"
            " tokenizer: no response would end"
        )
    return tokenizer


def _eos_ids(path: Path) -> list[int]:
    """The eos_token_id of a JSON file, which may be one id or a list; none if there is no such
    file or key.
    """
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
        raise config.ConfigError(
            f"config.model.path: {path}: eos_token_id={value!r} must be a token id, or a list of"
            " them"
        )
    return ids


class Chat:
    """Renders prompts for one model. Built once; refuses at once what could not render a question
    later.

    `date` (ISO) is what a chat template with the date in it shows; None: today's. `notices` are
    lines for the user.

    Raises:
        config.ConfigError: the model has no chat template and none is given, or it does not take
        the system prompt.
    """

    def __init__(self, tokenizer: TextCodec, cfg: config.ChatConfig, date: str | None = None):
        self.tokenizer = tokenizer
        self.cfg = cfg
        self.stop_ids = tokenizer.stop_ids
        self.pad_id = tokenizer.pad_id
        self.date = date or datetime.date.today().isoformat()
        template = cfg.template or tokenizer.chat_template
        if not template:
            raise config.ConfigError(
                "config.chat.template: this model has no chat template: give one (Jinja, as in"
                f" tokenizer_config.json; for a base model {bare_template(tokenizer)} shows it the"
                " bare text)"
            )
        self._template = ChatTemplate(
            template,
            {**tokenizer.template_variables, "enable_thinking": cfg.enable_thinking},
            self.date,
        )
        # the same questions come back every epoch
        self._ids = functools.lru_cache(CACHED_PROMPTS)(self._encode_messages)
        self.notices = _bos_notices(tokenizer, cfg, self.render_text("?"))

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
        """Whether the text spells a special token, such as the end of a turn, which would be
        read as that.
        """
        return any(token in text for token in self.tokenizer.special_tokens)

    def _encode_messages(
        self, messages: tuple[tuple[tuple[str, str], ...], ...]
    ) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(self._text([dict(m) for m in messages])))

    def _text(self, messages: Sequence[Message]) -> str:
        if self.cfg.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.cfg.system_prompt}, *messages]
        try:
            return self._template.render(messages)
        except TemplateFailed as e:
            where = "" if self.cfg.template else " (the tokenizer has its own)"
            raise config.ConfigError(f"config.chat.template{where}: {e}") from e


def bare_template(tokenizer: TextCodec) -> str:
    """A chat template for a base model: the messages' texts alone, with the ids that
    transformers gives to a text.
    """
    return _prefix(tokenizer) + r"{{ messages | map(attribute='content') | join('\n') }}"


def _prefix(tokenizer: TextCodec) -> str:
    """The Jinja text for `prefix_ids`."""
    bos = tokenizer.template_variables.get("bos_token")
    if bos and tuple(tokenizer.encode(bos)) == tokenizer.prefix_ids:
        return "{{ bos_token }}"
    return tokenizer.spell(tokenizer.prefix_ids)


def _bos_notices(
    tokenizer: TextCodec, cfg: config.ChatConfig, prompt_ids: tuple[int, ...]
) -> tuple[str, ...]:
    """A line if prompts lack what the tokenizer puts before every text, although the template is
    the user's, or have it twice.
    """
    prefix = tokenizer.prefix_ids
    if not prefix:
        return ()
    if prompt_ids[: 2 * len(prefix)] == prefix * 2:
        return (f"config.chat.template: prompts begin with {tokenizer.spell(prefix)} twice",)
    if cfg.template and prompt_ids[: len(prefix)] != prefix:
        return (
            (
                f"config.chat.template: prompts do not begin with {tokenizer.spell(prefix)}, which"
                " this tokenizer puts before every text; a template that begins with"
                f" {_prefix(tokenizer)} adds it"
            ),
        )
    return ()


def templated(messages: Sequence[Message], template: str) -> tuple[Message, ...]:
    """T(x, z) as messages: the template before the last user message's text; x itself for an
    empty template.
    """
    *before, last = messages
    z = template.strip()
    return (*before, {**last, "content": f"{z}\n\n{last['content']}"} if z else last)


def _frozen(messages: Sequence[Message]) -> tuple[tuple[tuple[str, str], ...], ...]:
    return tuple(tuple(m.items()) for m in messages)
