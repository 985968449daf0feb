"""Evaluates a model, or the policy of a run, on benchmarks; and compares evaluations."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from p2o_jax import config
from p2o_jax.config import Config, ConfigError
from p2o_jax.data import benchmarks
from p2o_jax.data.sources import Loaded, raise_problems
from p2o_jax.evaluation import report
from p2o_jax.evaluation.benchmark import BenchmarkSampler, Judges, Protocol
from p2o_jax.models import sharding
from p2o_jax.offline import policy, sampler_shapes, settings
from p2o_jax.offline.policy import ModelSource
from p2o_jax.rewards.lenient import LenientGrader
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.rollout.pipeline import RolloutPipeline
from p2o_jax.runtime import distributed, files, rng
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup import components, limits, run_directory, versions
from p2o_jax.startup.model import Model, open_model
from p2o_jax.startup.questions import load_sets

TABLE = "results.md"
MAX_AT_ONCE = 1024  # rollouts of a wave, per shard of the mesh's data x fsdp


class EvaluateOptions(NamedTuple):
    """What is evaluated, on what, and where the results are written."""

    out: Path
    benchmarks: str
    source: ModelSource = ModelSource()
    template: str = ""  # its text, or `best`, the run's
    protocol: Protocol = Protocol()
    overrides: settings.Overrides = ()


def evaluate(options: EvaluateOptions) -> None:
    """Evaluates a model, or the policy of a run.

    Raises:
        ConfigError: anything wrong with options, config, model or data.
    """
    cfg = evaluation_config(options)
    source = options.source
    template = policy.chosen_template(options.template, source.workdir)
    sets = load_sets(cfg, options.benchmarks, "--benchmarks")
    templates = {"plain": "", **({"templated": template} if template else {})}
    samples_files = [
        _samples_file(options.out, part, asked) for part in sets for asked in templates
    ]
    if problems := files.conflicts("--out", options.out / TABLE, *samples_files):
        raise ConfigError(*problems)
    reporter = Reporter(enabled=distributed.is_main_process())
    for line in (
        *files.leftovers(options.out / "model"),
        *(line for part in sets for line in _notes(part)),
    ):
        reporter.line(line)
    start = time.monotonic()
    with ExitStack() as stack:
        path = policy.directory(source, options.out / "model", options.overrides, stack)
        cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, path=path))
        cfg, benchmark_figures = _measure(cfg, options, sets, templates, reporter, stack)
        if distributed.is_main_process():
            results = {
                "model": source.model or source.workdir,
                "step": source.step,
                "template": template,
                "sources": {part.name: part.path for part in sets},
                "protocol": dataclasses.asdict(options.protocol),
                "benchmarks": benchmark_figures,
                "average": report.average(benchmark_figures),
                "seconds": round(time.monotonic() - start, 1),
                "config": dataclasses.asdict(cfg),
                "versions": versions.installed(),
            }
            files.write_json(options.out / report.RESULTS, results)
            _write_table(options.out / TABLE, report.table(results))


def compare(folders: Sequence[Path], asked: report.Asked, out: Path) -> None:
    """Writes the differences of evaluations from the first one, paired by question.

    Raises:
        ConfigError: anything wrong with the folders, or files that are there already.
    """
    figures, table = out / "comparison.json", out / "comparison.md"
    if problems := files.conflicts("--out", figures, table):
        raise ConfigError(*problems)
    values, text = report.compare(folders, asked)
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(figures, values)
    _write_table(table, text)


def evaluation_config(options: EvaluateOptions) -> Config:
    """The config of the run, or of an exported model, or the defaults; JAX is started.

    Settings that are about training only are replaced by ones that fit any machine.

    Raises:
        ConfigError: a wrong setting, or code of the run directory that is not allowed to run.
    """
    base = policy.base_config(options.source, options.overrides)
    exported = settings.exported_settings(options.source.model, settings.ALL_SETTINGS)
    # slots: as many as there is memory for
    return settings.command_config(base, {"rollout.slots": "0"} | exported, options.overrides)


def _measure(
    cfg: Config,
    options: EvaluateOptions,
    sets: Sequence[Loaded],
    templates: Mapping[str, str],
    reporter: Reporter,
    stack: ExitStack,
) -> tuple[Config, dict[str, dict[str, Any]]]:
    """(the config as fitted, figures by benchmark and kind of prompt); writes the samples.

    Args:
        cfg: with a model directory.
        options: of the evaluation.
        sets: the benchmarks.
        templates: by kind of prompt, plain or templated.
        reporter: shows progress and scores.
        stack: closes the graders.
    """
    workdir = options.source.workdir
    date = run_directory.read_date(Path(workdir)) if workdir else None
    model = open_model(cfg, reporter, date)
    judges = Judges(
        stack.enter_context(Scorer(cfg.reward)), stack.enter_context(LenientGrader(cfg.reward))
    )
    if problems := distributed.broadcast_from_main(judges.strict.problems):
        raise ConfigError(*problems)
    cfg = _fit(cfg, options, model, sets, list(templates.values()))
    engine = components.make_engine(cfg, model)
    weights = engine.to_rollout_layout(model.load(str(jnp.dtype(model.dtype))))
    pipeline = RolloutPipeline(engine, model.chat, judges.strict.judge, reporter)
    sampler = BenchmarkSampler(cfg, weights, pipeline, judges, rng.key(cfg.train.seed, "evaluate"))
    by_set: dict[str, dict[str, Any]] = {part.name: {} for part in sets}
    for part in sets:
        n, temperature = options.protocol.of(len(part.questions))
        for asked, z in templates.items():
            samples = sampler.sample(part, z, n, temperature)
            prompt = model.chat.prompt_text(part.questions[0], z)
            figures = {
                "temperature": temperature,
                **report.measure(samples, n),
                "prompt": prompt,
            }
            by_set[part.name][asked] = figures
            reporter.line(
                f"{part.name}, {asked}: {100 * figures['strict']['mean']:.1f} of"
                f" {len(part.questions)} questions x {n} at temperature {temperature}"
            )
            if distributed.is_main_process():
                _write_samples(_samples_file(options.out, part, asked), samples, n)
    return cfg, by_set


def _fit(
    cfg: Config,
    options: EvaluateOptions,
    model: Model,
    sets: Sequence[Loaded],
    templates: Sequence[str],
) -> Config:
    """The config with the sampler's shapes fitted to the sets, except those that the user gave.

    Slots stay as they are: as many as there is memory for.

    Args:
        cfg: to be fitted.
        options: with the protocol, and what the user gave.
        model: renders the prompts.
        sets: the benchmarks.
        templates: under which they are asked.

    Raises:
        ConfigError: prompts are longer than `rollout.prompt_buckets`, if these are given, or
            responses could be longer than the model's context.
    """
    rows = [
        (f"{part.path}:{line}", max(len(model.chat.render(q, z)) for z in templates))
        for part in sets
        for line, q in zip(part.lines, part.questions, strict=True)
    ]
    most = max(len(part.questions) * options.protocol.of(len(part.questions))[0] for part in sets)
    slots, at_once = cfg.rollout.slots, min(most, MAX_AT_ONCE * sharding.num_shards(model.mesh))
    given = {key for key, _ in options.overrides}
    cfg = sampler_shapes.fit(cfg, given, model, [n for _, n in rows], 1)
    limit = config.max_prompt_tokens(cfg)
    raise_problems(
        [
            f"{where}: a prompt of {n} tokens; config.rollout.prompt_buckets end at {limit}"
            for where, n in rows
            if n > limit
        ]
    )
    where, most_tokens = max(rows, key=lambda row: row[1])
    prompt = f"the prompt of {most_tokens:,} tokens in {where}"
    raise_problems(limits.response_problems(cfg, model.spec, prompt, most_tokens))
    return dataclasses.replace(
        cfg, rollout=dataclasses.replace(cfg.rollout, slots=slots, questions=at_once, group_size=1)
    )


def _notes(part: Loaded) -> list[str]:
    """Dropped duplicates of a set, and a size that is not the benchmark's."""
    known = benchmarks.BENCHMARKS.get(part.name)
    size = (
        f"{part.name}: {len(part.questions)} questions; the benchmark has {known.size}"
        if known
        else ""
    )
    return [*part.notices, *([size] if known and known.size != len(part.questions) else [])]


def _samples_file(out: Path, part: Loaded, asked: str) -> Path:
    return out / "samples" / f"{part.name}.{asked}.jsonl"


def _write_samples(path: Path, samples: Sequence[report.Sample], n: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(
        path, "".join(json.dumps(report.row(s, i % n)) + "\n" for i, s in enumerate(samples))
    )


def _write_table(path: Path, text: str) -> None:
    files.write_whole(path, text)
    print(text)
    print(path)
