"""Renders prompts T(x, z) as token ids with the model's tokenizer and chat template.

Also decodes token ids back to text.
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

# These stop a response if the tokenizer has them as special tokens.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")
THOUGHT_TAGS = ("<think>", "</think>")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
# Not valid in UTF-8: tokenizers refuse them, but an endpoint's reply may contain them.
_HALF_PAIR = re.compile("[\ud800-\udfff]")
CACHED_PROMPTS = 1 << 14


class TextCodec(Protocol):
    """The tokenizer interface that `Chat` needs."""

    stop_ids: tuple[int, ...]  # tokens that end a response
    pad_id: int  # any valid id: masks come from lengths
    special_tokens: tuple[str, ...]
    chat_template: str  # Jinja; empty if there is none
    template_variables: Mapping[str, Any]  # variables for the chat template, such as bos_token
    prefix_ids: tuple[int, ...]  # put before every plain text by transformers: a BOS, or nothing

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without any added token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, without special tokens."""
        ...

    def spell(self, ids: Sequence[int]) -> str:
        """The text of the ids, including special tokens."""
        ...


class Tokenizer:
    """A `TextCodec` for a fast tokenizer of transformers.

    `eos_ids` are further tokens that end a response, besides the tokenizer's own.
    """

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
        """The id of every token, including added tokens."""
        return self.hf.get_vocab()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without any added token. Unpaired surrogates become U+FFFD."""
        return self.hf.encode(_HALF_PAIR.sub("\ufffd", text), add_special_tokens=False)

    def spell(self, ids: Sequence[int]) -> str:
        """The text of the ids, including special tokens."""
        return self.hf.backend_tokenizer.decode(list(ids), skip_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, without special tokens."""
        # faster than hf.decode, which checks every id in Python
        return self.hf.backend_tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face model directory.

    Its stop ids include the eos_token_id of config.json and generation_config.json.

    Raises:
        config.ConfigError: the directory does not exist, or has no fast tokenizer or no stop token.
    """
    path = Path(path)
    where = f"config.model.path={path}"
    if not path.is_dir():
        raise config.ConfigError(f"{where}: no such directory")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise config.ConfigError(
            f"{where}: no tokenizer files in it (one of {', '.join(TOKENIZER_FILES)})"
        )
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # takes seconds to import

    # tokenizer.json is the tokenizer that the model was trained with. AutoTokenizer would go by
    # config.json's model type and substitute that family's pre-tokenizer. It is only used for
    # directories without a tokenizer.json.
    loader = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
    try:
        hf = loader.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as e:  # the edge: a damaged file raises any exception its reader raises
        if "trust_remote_code" in str(e):
            raise config.ConfigError(
                f"{where}: the tokenizer cannot be loaded: it needs custom code (auto_map in"
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
    """The eos_token_id of a JSON file: one id or a list. Empty without the file or the key."""
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
    """Renders prompts for one model.

    `date` (ISO) is the date that the chat template sees; today's if None. The attribute `notices`
    holds lines to show to the user.

    Raises:
        config.ConfigError: neither the model nor the config has a chat template, or it fails to
            render a question, for example because it rejects the system prompt.
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
                f" tokenizer_config.json). For a base model {bare_template(tokenizer)} renders the"
                " bare text"
            )
        self._template = ChatTemplate(
            template,
            {**tokenizer.template_variables, "enable_thinking": cfg.enable_thinking},
            self.date,
        )
        # every epoch renders the same questions
        self._ids = functools.lru_cache(CACHED_PROMPTS)(self._encode_messages)
        self.notices = _bos_notices(tokenizer, cfg, self.render_text("?"))

    @functools.cached_property
    def end_of_turn(self) -> int:
        """The stop token that ends an assistant's message: the one that the chat template puts
        after it, else the model's first.
        """
        probe = "PROBE"
        turns = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": probe},
            {"role": "user", "content": "?"},
        ]
        after = self.tokenizer.encode(self._text(turns).rpartition(probe)[2])
        return next((i for i in after if i in self.stop_ids), self.stop_ids[0])

    def render(self, question: Question, template: str = "") -> tuple[int, ...]:
        """The ids of T(x, z), including the opening of the assistant's turn."""
        return self._ids(_frozen(templated(question.messages, template)))

    def render_text(self, text: str) -> tuple[int, ...]:
        """The ids of a prompt with `text` as its only user message."""
        return self._ids(_frozen([{"role": "user", "content": text}]))

    def prompt_text(self, question: Question, template: str = "") -> str:
        """T(x, z) as text; `render` returns its ids."""
        return self._text(templated(question.messages, template))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, without special tokens. Spaces are kept."""
        return self.tokenizer.decode(ids)

    @functools.cached_property
    def opens_thought(self) -> bool:
        """Whether a prompt ends inside a thought: its template opens one for the response."""
        probe = "PROBE"
        opening = self._text([{"role": "user", "content": probe}]).rpartition(probe)[2]
        begin, end = THOUGHT_TAGS
        return begin in opening and end not in opening.rpartition(begin)[2]

    def decode_thoughts(self, ids: Sequence[int]) -> str:
        """The text of the ids with the tags of thoughts, which `decode` drops where they are
        special tokens; without other special tokens.
        """
        tags = {
            self.tokenizer.encode(tag)[0]: tag
            for tag in THOUGHT_TAGS
            if tag in self.tokenizer.special_tokens
        }
        parts, start = [], 0
        for place, token in enumerate(ids):
            if token in tags:
                parts += [self.decode(ids[start:place]), tags[token]]
                start = place + 1
        return "".join([*parts, self.decode(ids[start:])])

    def count_tokens(self, text: str) -> int:
        """The number of tokens of a bare text."""
        return len(self.tokenizer.encode(text))

    def spells_special(self, text: str) -> bool:
        """Whether the text contains a special token, such as the end of a turn.

        The tokenizer would encode it as that token.
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
    """A chat template for a base model: the messages' texts, after the tokenizer's prefix."""
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
    """A notice if prompts repeat the tokenizer's prefix, or if the user's template omits it."""
    prefix = tokenizer.prefix_ids
    if not prefix:
        return ()
    if prompt_ids[: 2 * len(prefix)] == prefix * 2:
        return (f"config.chat.template: prompts begin with {tokenizer.spell(prefix)} twice",)
    if cfg.template and prompt_ids[: len(prefix)] != prefix:
        notice = (
            f"config.chat.template: prompts do not begin with {tokenizer.spell(prefix)}, which"
            " this tokenizer puts before every text; begin the template with"
            f" {_prefix(tokenizer)} to add it"
        )
        return (notice,)
    return ()


def templated(messages: Sequence[Message], template: str) -> tuple[Message, ...]:
    """T(x, z) as messages: the template is put before the text of the last message.

    An empty template returns the messages unchanged.
    """
    *before, last = messages
    z = template.strip()
    return (*before, {**last, "content": f"{z}\n\n{last['content']}"} if z else last)


def _frozen(messages: Sequence[Message]) -> tuple[tuple[tuple[str, str], ...], ...]:
    return tuple(tuple(m.items()) for m in messages)
