"""Samples completions of the prompts in a file, with their log-probs and verdicts."""

import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax.numpy as jnp

from p2o_jax import config
from p2o_jax.config import Config, ConfigError
from p2o_jax.data import seed_templates, sources
from p2o_jax.data.prompts import PromptRow, read_prompts
from p2o_jax.offline import policy, sampler_shapes, settings
from p2o_jax.offline.policy import ModelSource
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.rollout import sampling_params
from p2o_jax.runtime import distributed, files, rng
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup import components, limits, run_directory
from p2o_jax.startup.model import Model, open_model
from p2o_jax.types import Completion, Question, Request, SamplingParams

Ids = tuple[int, ...]  # token ids
Place = tuple[str, int, int]  # template, number of the prompt, number of its completion


class GenerateOptions(NamedTuple):
    """What is sampled from which model, and where it is written."""

    source: ModelSource
    prompts: Path
    template: str = ""
    templates: str = ""  # a file of several; the prompts are asked plainly, too
    n: int = 1  # completions of each prompt
    out: str = ""  # empty: standard output
    temperature: float | None = None  # None: config.rollout.temperature
    overrides: settings.Overrides = ()


def generate(options: GenerateOptions) -> None:
    """Samples n completions of every prompt.

    Raises:
        ConfigError: anything wrong with options, prompts, config or model.
    """
    if options.out and (problems := files.conflicts("--out", Path(options.out))):
        raise ConfigError(*problems)
    source, overrides = options.source, options.overrides
    base = policy.base_config(source, overrides)
    exported = settings.exported_settings(source.model, settings.CHAT_SETTINGS)
    own = {} if source.workdir else LENGTH  # a run has one
    cfg = settings.command_config(base, DEFAULTS | own | exported, overrides)
    prompts = read_prompts(options.prompts, cfg.data)
    templates = [seed.text for seed in seed_templates.read(options.templates)]
    sources.raise_problems(distributed.broadcast_from_main(lambda: _out_problems(options.out)))
    reporter = Reporter(enabled=distributed.is_main_process())
    with ExitStack() as stack:
        folder = Path(source.workdir) / "generate_model"
        path = policy.directory(source, folder, overrides, stack)
        cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, path=path))
        _generate(cfg, options, prompts, templates, reporter, stack)


def _generate(
    cfg: Config,
    options: GenerateOptions,
    prompts: Sequence[PromptRow],
    several: Sequence[str],
    reporter: Reporter,
    stack: ExitStack,
) -> None:
    """Samples with a model directory.

    Args:
        cfg: with the directory.
        options: what is sampled.
        prompts: those of the file.
        several: templates to ask them under, besides none; empty: `options.template` alone.
        reporter: shows progress.
        stack: closes the graders and the output file.
    """
    workdir = options.source.workdir
    date = run_directory.read_date(Path(workdir)) if workdir else None
    model = open_model(cfg, reporter, date)
    templates = ["", *several] if several else [policy.chosen_template(options.template, workdir)]
    jobs = {
        z: [Job(p.question, model.chat.render(p.question, z), options.n) for p in prompts]
        for z in templates
    }
    given = {key for key, _ in options.overrides}
    lengths = [len(job.prompt_ids) for asked in jobs.values() for job in asked]
    cfg = sampler_shapes.fit(cfg, given, model, lengths, options.n)
    _check_lengths(options.prompts, cfg, model, [*prompts] * len(templates), lengths)
    temperature = options.temperature
    params = sampling_params.at(
        cfg, cfg.rollout.temperature if temperature is None else temperature
    )
    out = _open(options.out, distributed.is_main_process(), stack)
    scorer = stack.enter_context(Scorer(cfg.reward))
    sample(cfg, model, jobs, params, scorer, out, reporter)


DEFAULTS = {
    "data.prompt_template": "{question}",
    "data.max_prompt_tokens": "1",  # the prompts are measured when they are known
}
LENGTH = {"rollout.max_new_tokens": "512"}


class Job(NamedTuple):
    """A question, its rendered prompt, and how many completions of it are wanted."""

    question: Question
    prompt_ids: Ids
    n: int


def sample(
    cfg: Config,
    model: Model,
    jobs: Mapping[str, Sequence[Job]],
    params: SamplingParams,
    scorer: Scorer,
    out: TextIO,
    reporter: Reporter,
) -> None:
    """Writes the completions of every prompt, in order, a few waves of the sampler at a time.

    Args:
        cfg: with the sampler's shapes, and the seed.
        model: opened, not loaded.
        jobs: the prompts under each template; rows name the template if there are several.
        params: temperature and limits of sampling.
        scorer: judges completions of questions that have an answer.
        out: gets a line of JSON for each completion, from process 0.
        reporter: shows progress, speed and success.
    """
    engine = components.make_engine(cfg, model)
    weights = engine.to_rollout_layout(model.load(str(jnp.dtype(model.dtype))))
    key = rng.key(cfg.train.seed, "generate")
    at_once = engine.max_rollouts * engine.num_shards
    compiles, start, tokens = distributed.CompileCounter(), time.monotonic(), 0
    places = [
        (z, i, k) for z, asked in jobs.items() for i, job in enumerate(asked) for k in range(job.n)
    ]
    right: dict[str, list[bool]] = {z: [] for z in jobs}
    with reporter.phase("generate", len(places), "completions") as advance:
        for part in _waves(places, at_once):
            requests = [Request(jobs[z][i].prompt_ids, f"{i}/{k}") for z, i, k in part]
            completions = engine.generate(weights, requests, params, key, advance)
            tokens += sum(len(c.token_ids) for c in completions)
            if distributed.is_main_process():
                texts = [model.chat.decode(c.token_ids.tolist()) for c in completions]
                verdicts = _verdicts(scorer, [jobs[z][i].question for z, i, _ in part], texts)
                for place, completion, text, verdict in zip(
                    part, completions, texts, verdicts, strict=True
                ):
                    named = {"template": place[0]} if len(jobs) > 1 else {}
                    row = _row(place[1:], completion, text, {**named, **verdict})
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
                    if verdict:
                        right[place[0]].append(verdict["verdict"]["status"] == "correct")
                out.flush()
    seconds = time.monotonic() - start
    reporter.line(
        f"{len(places)} completions, {tokens:,} tokens in {seconds:.1f} s, {compiles.seconds:.1f} s"
        f" of them compiling: {tokens / max(seconds - compiles.seconds, 1e-9):,.0f} tokens/s"
    )
    for line in _success(right):
        reporter.line(line)


def _waves(places: Sequence[Place], at_once: int) -> Iterator[Sequence[Place]]:
    """The places in parts of at most `at_once`, each under one template: names of requests are
    unique in a part, and a response does not depend on the other templates.
    """
    for _, group in itertools.groupby(places, lambda place: place[0]):
        own = list(group)
        yield from (own[first : first + at_once] for first in range(0, len(own), at_once))


def _success(right: Mapping[str, Sequence[bool]]) -> Iterator[str]:
    """A line for each template with the share of right ones among the judged completions."""
    for number, (template, judged) in enumerate(right.items()):
        name = f"template {number} ({template.splitlines()[0][:60]})" if template else "plain"
        if judged:
            share = sum(judged) / len(judged)
            yield f"{name}: {sum(judged):,} of {len(judged):,} right ({share:.1%})"


def _check_lengths(
    path: Path, cfg: Config, model: Model, prompts: Sequence[PromptRow], lengths: Sequence[int]
) -> None:
    """Raises a ConfigError if prompts do not fit the sampler, or responses the model's context."""
    limit = config.max_prompt_tokens(cfg)
    sources.raise_problems(
        [
            f"{path}:{p.line}: a prompt of {n} tokens; config.rollout.prompt_buckets end at {limit}"
            for p, n in zip(prompts, lengths, strict=True)
            if n > limit
        ]
    )
    most, line = max(
        ((n, p.line) for p, n in zip(prompts, lengths, strict=True)), key=lambda pair: pair[0]
    )
    prompt = f"the prompt of {most:,} tokens in {path}:{line}"
    sources.raise_problems(limits.response_problems(cfg, model.spec, prompt, most))


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
    scorer: Scorer, questions: Sequence[Question], texts: Sequence[str]
) -> list[dict[str, Any]]:
    """For each text its verdict as a field of a row; nothing where the question has no answer."""
    judged = [i for i, q in enumerate(questions) if scorer.can_judge(q)]
    verdicts = scorer.judge([texts[i] for i in judged], [questions[i] for i in judged])
    fields: list[dict[str, Any]] = [{} for _ in texts]
    for i, v in zip(judged, verdicts, strict=True):
        fields[i] = {"verdict": dataclasses.asdict(v)}
    return fields


def _row(
    place: tuple[int, int], completion: Completion, text: str, verdict: dict[str, Any]
) -> dict[str, Any]:
    return {
        "index": place[0],
        "n": place[1],
        "text": text,
        "tokens": len(completion.token_ids),
        "stopped": completion.stopped,
        "logp": float(completion.logp_R.sum(dtype="float64")),
        "token_ids": completion.token_ids.tolist(),
        **verdict,
    }
