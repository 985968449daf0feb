"""Samples: `python -m p2o_jax.generate --model DIR --prompts FILE.jsonl [--template TEXT] [--n K]
[--out OUT.jsonl]`.

A line of FILE has a `prompt` or a `question`: a
text, or a list of chat messages. It is asked as it stands (training puts a question that is a text
into config.data.prompt_template; here nothing is added unless that is given), under the template if
there is one. Each completion is a line of OUT, or of standard output:

    index        which prompt, from 0            logp       sum of the tokens' log-probs at the sampling temperature
    n            which of its K completions      token_ids  of the response, the stop token included
    text         the response                    verdict    where the prompt's line has an `answer`: what config.reward makes of it
    tokens       its length                      stopped    false: cut at config.rollout.max_new_tokens (512 unless given)

What is sampled depends on the model, the prompt, its index, n and config.train.seed, not on the
rest of the file.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from p2o_jax import config, types
from p2o_jax.config import Config, ConfigError, loading
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT, TEMPERATURE_OR_GREEDY
from p2o_jax.data import sources
from p2o_jax.main import command
from p2o_jax.rollout import sampling_params
from p2o_jax.runtime import files, rng
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup.model import open_model
from p2o_jax.types import Completion, Message, Question, Request, SamplingParams

if TYPE_CHECKING:
    from p2o_jax.rewards.verify import Verifier
    from p2o_jax.startup.model import Model

COMMAND_LINE = CommandLine(
    "p2o_jax.generate",
    __doc__,
    Flag("model", "Hugging Face directory", required=True, metavar="DIR"),
    Flag("prompts", "JSONL file of prompts", required=True, metavar="FILE.jsonl"),
    Flag("template", "Prompt template to ask every prompt under", metavar="TEXT"),
    Flag("n", "Completions per prompt", 1, kind=int, within=COUNT),
    Flag(
        "temperature",
        "Sampling temperature; 0 is greedy (default: config.rollout.temperature)",
        None,
        kind=float,
        within=TEMPERATURE_OR_GREEDY,
    ),
    Flag("out", "Output file; standard output if not given", metavar="OUT.jsonl"),
)
MAX_SLOTS = 128  # per shard of the mesh's data x fsdp
# per shard, for the cache of the prompts, and again for that of the completions
CACHE_BYTES = 2 * 2**30
MIN_BUCKET = 32
WAVES = 8  # completions written at a time, in multiples of the slots


class PromptRow(NamedTuple):
    """A prompt and its line in the file, from 1; a question without an answer has an empty one,
    and no verdict.
    """

    line: int
    question: Question


def run(argv: Sequence[str]) -> None:
    """Samples what the command line asks for.

    Raises:
        ConfigError: anything wrong with flags, prompts, config or model.
    """
    flags, overrides = COMMAND_LINE.parse(argv)
    if flags["out"] and (problems := files.conflicts("--out", Path(flags["out"]))):
        raise ConfigError(*problems)
    n, cfg = flags["n"], command_config(flags["model"], overrides)
    temperature = flags["temperature"]
    temperature = cfg.rollout.temperature if temperature is None else temperature
    prompts = read_prompts(Path(flags["prompts"]), cfg.data.prompt_template)

    from p2o_jax.rewards.verify import Verifier
    from p2o_jax.runtime import distributed

    _raise(distributed.broadcast_from_main(lambda: _out_problems(flags["out"])))
    reporter = Reporter(enabled=distributed.is_main_process())
    model = open_model(cfg, reporter)
    ids = [model.chat.render(p.question, flags["template"]) for p in prompts]
    cfg = fit(cfg, {key for key, _ in overrides}, model, [len(i) for i in ids], n)
    _check_lengths(flags["prompts"], prompts, ids, config.max_prompt_tokens(cfg))
    _check_context(flags["prompts"], cfg, model, prompts, ids)
    with ExitStack() as stack:
        out = _open(flags["out"], distributed.is_main_process(), stack)
        verifier = stack.enter_context(Verifier(cfg.reward))
        how = sampling_params.at(cfg, temperature)
        sample(cfg, model, [p.question for p in prompts], ids, n, how, verifier, out, reporter)


def sample(
    cfg: Config,
    model: "Model",
    questions: Sequence[Question],
    prompt_ids: Sequence[tuple[int, ...]],
    n: int,
    how: SamplingParams,
    verifier: "Verifier",
    out: TextIO,
    reporter: Reporter,
) -> None:
    """Writes n completions of every prompt, in order, a few waves of the sampler at a time."""
    import jax.numpy as jnp

    from p2o_jax.runtime import distributed
    from p2o_jax.startup import components

    engine = components.make_engine(cfg, model)
    weights = engine.to_rollout_layout(model.load(str(jnp.dtype(model.dtype))))
    jobs = [(i, k) for i in range(len(questions)) for k in range(n)]
    at_once = engine.max_rollouts * engine.num_shards
    compiles, start, tokens = distributed.CompileCounter(), time.monotonic(), 0
    with reporter.phase("generate", len(jobs), "completions") as advance:
        for first in range(0, len(jobs), at_once):
            part = jobs[first : first + at_once]
            requests = [Request(prompt_ids[i], f"{i}/{k}") for i, k in part]
            completions = engine.generate(
                weights, requests, how, rng.key(cfg.train.seed, "generate"), advance
            )
            tokens += sum(len(c.token_ids) for c in completions)
            if distributed.is_main_process():
                texts = [model.chat.decode(c.token_ids.tolist()) for c in completions]
                verdicts = _verdicts(verifier, [questions[i] for i, _ in part], texts)
                for (i, k), completion, text, verdict in zip(
                    part, completions, texts, verdicts, strict=True
                ):
                    out.write(
                        json.dumps(_row(i, k, completion, text) | verdict, ensure_ascii=False)
                        + "\n"
                    )
                out.flush()
    seconds = time.monotonic() - start
    reporter.line(
        f"{len(jobs)} completions, {tokens:,} tokens in {seconds:.1f} s, {compiles.seconds:.1f} s"
        f" of them compiling: {tokens / max(seconds - compiles.seconds, 1e-9):,.0f} tokens/s"
    )


def start(values: Any, overrides: Sequence[tuple[str, str]]) -> int:
    """The number of devices, on which other defaults depend; JAX is started as the values, and
    the overrides of `mesh`, say.
    """
    from p2o_jax.runtime import distributed

    loading.override(values, [(key, text) for key, text in overrides if key.startswith("mesh.")])
    return distributed.start(values.mesh, compile_cache="")


def command_config(model: str, overrides: Sequence[tuple[str, str]]) -> Config:
    """The config of a command that only samples: the defaults of training where they have
    nothing to do with the machine or the file.
    """
    values = loading.to_config_dict(Config())
    num_devices = str(start(values, overrides))
    defaults = {
        "model.path": model,
        "data.prompt_template": "{question}",
        "data.max_prompt_tokens": "1",  # the prompts are measured when they are known
        "gepa.enabled": "false",
        "optim.micro_rows": num_devices,
        "rollout.slots": num_devices,
        "rollout.max_new_tokens": "512",
    }
    loading.override(values, [*defaults.items(), *overrides])
    return config.resolve(loading.from_config_dict(values))


def fit(cfg: Config, given: set[str], model: "Model", lengths: Sequence[int], n: int) -> Config:
    """The config with the sampler's shapes, but for the `given` ones, fitted to n completions of
    prompts of these lengths.

    Prompts are padded to one of three powers of two, the last of which holds the longest. There are
    as many slots, and as many prompts in the cache, as there is work for and as CACHE_BYTES hold.
    """
    import jax.numpy as jnp

    from p2o_jax.models import sharding

    spec, shards = model.spec, sharding.num_shards(model.mesh)
    longest = max(1 << (max(lengths) - 1).bit_length(), MIN_BUCKET)
    token_bytes = 2 * spec.layers * spec.kv_heads * spec.head_dim * jnp.dtype(model.dtype).itemsize
    held = CACHE_BYTES // token_bytes
    slots = max(
        min(MAX_SLOTS, held // cfg.rollout.max_new_tokens, -(-len(lengths) * n // shards)), 1
    )
    rows = max(min(held // longest, -(-len(lengths) // shards)), 1)
    fitted: dict[str, Any] = {
        "prompt_buckets": tuple(sorted({max(longest >> shift, MIN_BUCKET) for shift in (4, 2, 0)})),
        "slots": slots * shards,
        "questions": WAVES * slots * shards,
        "group_size": 1,
        "prompt_cache_tokens": rows * longest * shards,
    }
    ours = {name: value for name, value in fitted.items() if f"rollout.{name}" not in given}
    return dataclasses.replace(cfg, rollout=dataclasses.replace(cfg.rollout, **ours))


def read_prompts(path: Path, prompt_template: str = sources.QUESTION) -> list[PromptRow]:
    """The prompts of a JSONL file; those that are texts are put into `prompt_template`.

    Raises:
        ConfigError: with a line per problem, `FILE:LINE: rule`.
    """
    prompts: list[PromptRow] = []
    problems: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(
            f"--prompts={path}: {e.strerror if isinstance(e, OSError) else 'not UTF-8'}"
        ) from e
    for number, line in enumerate(lines, 1):
        if line.strip():
            found = _question(line, prompt_template)
            if isinstance(found, str):
                problems.append(f"{path}:{number}: {found}")
            else:
                prompts.append(PromptRow(number, found))
    if not prompts and not problems:
        problems.append(f"{path}: no prompts in this file")
    _raise(problems)
    return prompts


def _question(line: str, prompt_template: str) -> Question | str:
    """The question in a line of JSON, or what is wrong with it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as e:
        return f"not JSON: {e}"
    name = next(
        (name for name in ("prompt", "question") if isinstance(record, Mapping) and name in record),
        None,
    )
    if name is None:
        return 'expected a JSON object with a "prompt" or a "question"'
    messages = _messages(record[name], prompt_template)
    if isinstance(messages, str):
        return f"{name}: {messages}"
    answer = record.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        return f"answer: expected a text or a number, got {type(answer).__name__}"
    return Question(
        types.question_id(messages), messages, "" if answer is None else str(answer).strip()
    )


def _messages(value: Any, prompt_template: str) -> tuple[Message, ...] | str:
    """The chat messages in a prompt's field, or what is wrong with it."""
    if isinstance(value, str):
        value = [
            {
                "role": "user",
                "content": sources.fill(prompt_template, value) if value.strip() else "",
            }
        ]
    rule = (
        f'expected a text, or a list of messages {{"role": {"|".join(sources.ROLES)}, "content":'
        " text}, the last the user's"
    )
    if not isinstance(value, list) or not all(isinstance(m, Mapping) for m in value):
        return rule
    if not all(m.get("role") in sources.ROLES and isinstance(m.get("content"), str) for m in value):
        return rule
    if not value or value[-1]["role"] != "user":
        return rule
    if not value[-1]["content"].strip():
        return "empty"
    if not _is_unicode("".join(m["content"] for m in value)):
        return "half a surrogate pair: no valid Unicode"
    return tuple({"role": m["role"], "content": m["content"]} for m in value)


def _is_unicode(text: str) -> bool:
    """JSON can spell halves of surrogate pairs, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_lengths(
    path: str, prompts: Sequence[PromptRow], ids: Sequence[tuple[int, ...]], limit: int
) -> None:
    rule = f"config.rollout.prompt_buckets end at {limit}"
    _raise(
        [
            f"{path}:{p.line}: a prompt of {len(i)} tokens; {rule}"
            for p, i in zip(prompts, ids, strict=True)
            if len(i) > limit
        ]
    )


def _check_context(
    path: str,
    cfg: Config,
    model: "Model",
    prompts: Sequence[PromptRow],
    ids: Sequence[tuple[int, ...]],
) -> None:
    from p2o_jax.startup import limits

    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    prompt, tokens = (
        f"the prompt of {len(ids[longest]):,} tokens in {path}:{prompts[longest].line}",
        len(ids[longest]),
    )
    _raise(limits.response_problems(cfg, model.spec, prompt, tokens))


def _raise(problems: Sequence[str]) -> None:
    hidden = len(problems) - sources.MAX_PROBLEMS_SHOWN
    if problems:
        raise ConfigError(
            *problems[: sources.MAX_PROBLEMS_SHOWN],
            *([f"... and {hidden} more"] if hidden > 0 else []),
        )


def _out_problems(path: str) -> list[str]:
    """A line if the output file cannot be there; checked before the model is opened."""
    out = Path(path)
    if path and out.is_dir():
        return [f"--out={out}: is a directory"]
    return [] if out.parent.is_dir() else [f"--out={out}: no such directory: {out.parent}"]


def _open(path: str, writes: bool, stack: ExitStack) -> TextIO:
    """The output file, opened before anything slow happens; without a path, standard output."""
    if not path and writes:
        return sys.stdout
    try:
        return stack.enter_context(files.create(Path(path if writes else os.devnull)))
    except OSError as e:
        raise ConfigError(f"--out={path}: {e.strerror}") from e


def _verdicts(
    verifier: "Verifier", questions: Sequence[Question], texts: Sequence[str]
) -> list[dict[str, Any]]:
    """For each text a verdict to be written, nothing where the question has no answer to be
    judged by.
    """
    judged = [i for i, q in enumerate(questions) if q.answer or verifier.cfg.fn]
    verdicts = verifier.judge([texts[i] for i in judged], [questions[i] for i in judged])
    found: list[dict[str, Any]] = [{} for _ in texts]
    for i, v in zip(judged, verdicts, strict=True):
        found[i] = {"verdict": dataclasses.asdict(v)}
    return found


def _row(index: int, n: int, completion: Completion, text: str) -> dict[str, Any]:
    return {
        "index": index,
        "n": n,
        "text": text,
        "tokens": len(completion.token_ids),
        "stopped": completion.stopped,
        "logp": float(completion.logp_R.sum(dtype="float64")),
        "token_ids": completion.token_ids.tolist(),
    }


if __name__ == "__main__":
    command(run)
