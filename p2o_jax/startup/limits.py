"""What a model has no numbers for: token ids beyond its embedding, and sequences beyond its
positions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from p2o_jax import config
from p2o_jax.config import Config, ConfigError
from p2o_jax.data.chat import Chat
from p2o_jax.models import hf_config
from p2o_jax.models.spec import ModelSpec
from p2o_jax.runtime.listing import shortened

MAX_TOKENS_SHOWN = 5
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_token_ids(
    directory: Path, vocab: int, tokens: Mapping[str, int], stop_ids: Sequence[int], pad_id: int
) -> None:
    """Compares every id that the tokenizer and the special ids of the directory can bring into a
    sequence with the embedding.

    Args:
        vocab: rows of the embedding.
        tokens: the tokenizer's tokens and their ids, added tokens included. A text that spells one
            is encoded as it, so that none may lie beyond the embedding, whether or not the model's
            own prompts hold it.

    Raises:
        ConfigError: with a line for each id that is beyond the embedding, or no token id.
    """
    rule = (
        f"the embedding has {vocab} rows (vocab_size in config.json), for the ids 0 to {vocab - 1}"
    )
    beyond = sorted((i, token) for token, i in tokens.items() if not 0 <= i < vocab)
    problems = shortened(
        [f"{directory}: the tokenizer's {token!r} has id {i}; {rule}" for i, token in beyond],
        MAX_TOKENS_SHOWN,
        f"{directory}: ",
        "tokens of the tokenizer beyond the embedding",
    )
    for file in ("config.json", "generation_config.json"):
        problems += _special_id_problems(directory / file, vocab, rule)
    if not problems:  # ids from elsewhere
        ends = [(i, "stop") for i in stop_ids if not 0 <= i < vocab]
        ends += [(pad_id, "padding")] if not 0 <= pad_id < vocab else []
        problems = [f"{directory}: the {name} id is {i}; {rule}" for i, name in ends]
    if problems:
        raise ConfigError(*problems, *([_ADVICE] if beyond else []))


_ADVICE = (
    "tokens beyond the embedding: resize it (resize_token_embeddings in transformers), or remove"
    " them from tokenizer.json, added_tokens.json and tokenizer_config.json"
)


def _special_id_problems(path: Path, vocab: int, rule: str) -> list[str]:
    """A line for each special id in a JSON file that is beyond the embedding. A pad_token_id of
    -1 stands for none.
    """
    values = hf_config.read_json(path) if path.exists() else {}
    problems = []
    for key in SPECIAL_IDS:
        value = values.get(key)
        for i in value if isinstance(value, list) else [] if value is None else [value]:
            if type(i) is not int:
                problems.append(f"{path}: {key}={value!r} must be a token id, or a list of them")
            elif not 0 <= i < vocab and (key, i) != ("pad_token_id", -1):
                problems.append(f"{path}: {key}={i}; {rule}")
    return problems


def beyond_context(cfg: Config, spec: ModelSpec, tokens: int) -> str:
    """Why a sequence of this many tokens is longer than the model takes; empty where it is not."""
    if spec.context and tokens > spec.context and not cfg.model.allow_long_context:
        scaled = f", {spec.rope.kind} scaling included" if spec.rope.kind != "default" else ""
        return (
            f"the model has {spec.context:,} positions (max_position_embeddings in"
            f" config.json{scaled}); config.model.allow_long_context=true allows more"
        )
    return ""


def notices(spec: ModelSpec, longest: int) -> list[str]:
    """A line if the model's positions depend on the longest sequence that may come."""
    if spec.rope.kind != "longrope":
        return []
    original, which = spec.rope.original_max_positions, "long" if spec.rope.long else "short"
    return [
        f"longrope: the {which} factors are used for all sequences, because they may have up to"
        f" {longest:,} tokens; the original length is {original:,}"
    ]


def response_problems(cfg: Config, spec: ModelSpec, prompt: str, prompt_tokens: int) -> list[str]:
    """A line if a prompt of this many tokens and its longest response are longer than the model
    takes; `prompt` describes it.
    """
    most = cfg.rollout.max_new_tokens
    why = beyond_context(cfg, spec, prompt_tokens + most)
    if not why:
        return []
    left = spec.context - prompt_tokens
    advice = f"; a config.rollout.max_new_tokens of up to {left} fits" if left > 0 else ""
    return [
        f"config.rollout.max_new_tokens={most} after {prompt} makes {prompt_tokens + most:,}"
        f" tokens: {why}{advice}"
    ]


def training_problems(cfg: Config, spec: ModelSpec, chat: Chat, longest_plain: int) -> list[str]:
    """A line for each setting that the model cannot satisfy, and for every kind of sequence of a
    run that can be longer than the model takes.

    Args:
        longest_plain: tokens of the longest question, training or held out, as it is asked without
            a template.
    """
    prompt, tokens = f"the longest question's prompt of {longest_plain:,} tokens", longest_plain
    g = cfg.gepa
    if g.enabled:
        template = config.longest_template_tokens(cfg)
        # which does not ask whether a prompt is as long as those of training
        evaluated = cfg.eval.template == "best"
        cap = (
            config.max_prompt_tokens(cfg) if evaluated else config.max_templated_prompt_tokens(cfg)
        )
        joined = longest_plain + chat.count_tokens("\n\n") + template
        tokens = max(min(joined, cap), longest_plain)
        prompt = (
            f"a prompt of up to {tokens:,} tokens (the longest question has {longest_plain:,}, the"
            f" longest template {template:,};"
            f" config.gepa.max_template_tokens={g.max_template_tokens},"
            f" config.data.max_prompt_tokens={cfg.data.max_prompt_tokens},"
            f" config.rollout.prompt_buckets={cfg.rollout.prompt_buckets})"
        )
    problems = response_problems(cfg, spec, prompt, tokens)
    if cfg.train.router_replay and not spec.expert_layers:
        problems.append(
            f"config.train.router_replay=true: {spec.family} has no experts whose choice could be"
            " replayed"
        )
    if config.model_reflects(cfg):
        around = len(chat.render_text(""))
        reflection = g.reflect_prompt_tokens + around + g.reflect_new_tokens
        if why := beyond_context(cfg, spec, reflection):
            problems.append(
                f"config.gepa.reflect_prompt_tokens={g.reflect_prompt_tokens}, {around} tokens of"
                " chat template around them and"
                f" config.gepa.reflect_new_tokens={g.reflect_new_tokens} make {reflection:,}"
                f" tokens: {why}"
            )
    return problems
