"""Evaluates on benchmarks: `python -m p2o_jax.evaluate --model DIR|--workdir RUN --benchmarks NAMES
--out OUT`.

NAMES is a list like `aime24,math500,gsm8k=DIR@test,mine=held_out.jsonl`: benchmarks from the hub
(p2o_jax/data/benchmarks.py has their ids), local sources in their place, or questions of one's own.
As in the paper, sets under 100 questions are sampled `--k` times (16) at `--temperature` (0.6),
larger ones answered once, greedily; `--k-large N` samples those N times, too. A `--workdir` is
evaluated with its own prompts, chat settings and reward; with `--template TEXT` (or `best`, the
run's) everything is asked under it as well. A run directory may be somebody else's: the code that
its `config.reward.fn` names runs only with `--allow-reward-fn`, or if you name a function yourself
with `--config.reward.fn`. OUT gets:

    results.json    figures of the strict grader (training's) and of the lenient one, config, prompts, versions
    results.md      the same as a table: mean [95 % bootstrap interval over questions], pass@n, maj@n, format, truncation, time-outs
    samples/        every sample, NAME.plain.jsonl and NAME.templated.jsonl

`python -m p2o_jax.evaluate --compare OUT,OUT,... --out DIR` puts evaluations side by side:
differences from the first, paired by question. Any `--config.a.b=value` may follow;
`--config.rollout.max_new_tokens` is 12,288 unless given, or the run's.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from p2o_jax import config
from p2o_jax.config import Config, ConfigError, loading
from p2o_jax.config.command_line import CommandLine, Flag, Switch
from p2o_jax.config.ranges import COUNT, TEMPERATURE
from p2o_jax.data import benchmarks, sources
from p2o_jax.evaluation import report
from p2o_jax.main import command
from p2o_jax.rewards import own
from p2o_jax.rewards.lenient import Grade, LenientGrader
from p2o_jax.rollout import sampling_params
from p2o_jax.runtime import files, rng
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup.model import open_model
from p2o_jax.tracking.metric_names import read_rows
from p2o_jax.types import TemplatedQuestion

if TYPE_CHECKING:
    from p2o_jax.rewards.verify import Verifier
    from p2o_jax.startup.model import Model

TABLE = "results.md"
MAX_AT_ONCE = 1024  # rollouts of a wave, per shard of the mesh's data x fsdp
COMMAND_LINE = CommandLine(
    "p2o_jax.evaluate",
    __doc__,
    Flag("model", "Hugging Face directory to evaluate", metavar="DIR"),
    Flag("workdir", "Run directory whose policy to evaluate", metavar="RUN"),
    Flag(
        "step",
        "Policy step of the run's checkpoint, or best: the one with the highest held-out accuracy"
        " (default: the newest)",
        metavar="N|best",
    ),
    Flag("benchmarks", "Benchmarks and sources of questions, NAME or NAME=SOURCE", metavar="NAMES"),
    Flag("out", "Directory for the results", required=True, metavar="OUT"),
    Flag(
        "k",
        f"Samples per question of a set with fewer than {benchmarks.SMALL} questions",
        16,
        kind=int,
        within=COUNT,
    ),
    Flag("k-large", "Samples per question of a larger set; 1 is greedy", 1, kind=int, within=COUNT),
    Flag(
        "temperature",
        "Sampling temperature where there is more than one sample per question",
        0.6,
        kind=float,
        within=TEMPERATURE,
    ),
    Flag(
        "template",
        "Prompt template to ask every question under as well, or best: the run's template with the"
        " highest dev score",
        metavar="TEXT|best",
    ),
    Flag("compare", "Evaluations to compare, instead of evaluating", metavar="OUT,OUT,..."),
    Flag(
        "asked",
        "Which results to compare: of plain or of templated questions",
        "plain",
        choices=("plain", "templated"),
    ),
    Switch("allow-reward-fn", "Run the code that the run's config.reward.fn names"),
)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How often and how hot questions are asked."""

    k: int
    k_large: int
    temperature: float

    def of(self, num_questions: int) -> tuple[int, float]:
        """(samples, temperature) for a set of so many questions; a single sample is greedy."""
        n = self.k if num_questions < benchmarks.SMALL else self.k_large
        return n, self.temperature if n > 1 else 0.0


def run(argv: Sequence[str]) -> None:
    """Evaluates, or compares, as the command line asks.

    Raises:
        ConfigError: anything wrong with flags, config, model or data.
    """
    flags, overrides = COMMAND_LINE.parse(argv, _problems)
    out = Path(flags["out"])
    if flags["compare"]:
        _compare(flags, out)
        return
    protocol = Protocol(flags["k"], flags["k-large"], flags["temperature"])
    cfg = _config(flags, overrides)
    template = _template(flags)
    sets = benchmarks.load_sets(flags["benchmarks"], cfg.data, "--benchmarks")
    templates = {"plain": "", **({"templated": template} if template else {})}
    samples_files = [_samples_file(out, part, asked) for part in sets for asked in templates]
    if problems := files.conflicts("--out", out / TABLE, *samples_files):
        raise ConfigError(*problems)

    from p2o_jax.rewards.verify import Verifier
    from p2o_jax.runtime import distributed
    from p2o_jax.startup import run_directory

    reporter = Reporter(enabled=distributed.is_main_process())
    for line in (
        *files.leftovers(out / "model"),
        *(line for part in sets for line in _notes(part)),
    ):
        reporter.line(line)
    start = time.monotonic()
    with ExitStack() as stack:
        cfg = _with_model(cfg, flags, overrides, out, stack)
        date = run_directory.read_date(Path(flags["workdir"])) if flags["workdir"] else None
        model = open_model(cfg, reporter, date)
        judges = Judges(
            stack.enter_context(Verifier(cfg.reward)),
            stack.enter_context(LenientGrader(cfg.reward)),
        )
        if problems := distributed.broadcast_from_main(judges.strict.problems):
            raise ConfigError(*problems)
        cfg = _fit(
            cfg, {key for key, _ in overrides}, model, sets, list(templates.values()), protocol
        )
        answers = Answers(cfg, model, judges, reporter)
        found: dict[str, dict[str, Any]] = {part.name: {} for part in sets}
        for part in sets:
            n, temperature = protocol.of(len(part.questions))
            for asked, z in templates.items():
                samples = answers.sample(part, z, n, temperature)
                prompt = model.chat.prompt_text(part.questions[0], z)
                figures = {
                    "temperature": temperature,
                    **report.measure(samples, n),
                    "prompt": prompt,
                }
                found[part.name][asked] = figures
                score = (
                    f"{100 * figures['strict']['mean']:.1f} of {len(part.questions)} questions x"
                    f" {n} at temperature {temperature}"
                )
                reporter.line(f"{part.name}, {asked}: {score}")
                if distributed.is_main_process():
                    _write_samples(_samples_file(out, part, asked), samples, n)
        if distributed.is_main_process():
            results = {
                "model": flags["model"] or flags["workdir"],
                "step": flags["step"],
                "template": template,
                "sources": {part.name: part.path for part in sets},
                "protocol": dataclasses.asdict(protocol),
                "benchmarks": found,
                "average": report.average(found),
                "seconds": round(time.monotonic() - start, 1),
                "config": dataclasses.asdict(cfg),
                "versions": run_directory.versions(),
            }
            files.write_json(out / report.RESULTS, results)
            _write_table(out / TABLE, report.table(results))


class Judges(NamedTuple):
    """Training's verifier, and the lenient grader."""

    strict: "Verifier"
    lenient: LenientGrader


class Answers:
    """The model's answers, by the path of training and GEPA. The lenient grades are process 0's,
    too.
    """

    def __init__(self, cfg: Config, model: "Model", judges: Judges, reporter: Reporter):
        import jax.numpy as jnp

        from p2o_jax.rollout.pipeline import RolloutPipeline
        from p2o_jax.startup import components

        self.cfg, self.judges = cfg, judges
        engine = components.make_engine(cfg, model)
        self.weights = engine.to_rollout_layout(model.load(str(jnp.dtype(model.dtype))))
        self.pipeline = RolloutPipeline(engine, model.chat, judges.strict.judge, reporter)

    def sample(
        self, part: sources.Loaded, template: str, n: int, temperature: float
    ) -> list[report.Sample]:
        """n samples of each question under a template, all of a question's before the next one's."""
        from p2o_jax.runtime import distributed

        how = sampling_params.at(self.cfg, temperature)
        prompts = [
            TemplatedQuestion(q, template, f"{part.name}/{q.id}/{i}")
            for q in part.questions
            for i in range(n)
        ]
        key = rng.key(self.cfg.train.seed, "evaluate")
        rollouts = self.pipeline.sample(self.weights, prompts, how, key, phase="eval")
        texts, answers = [r.text for r in rollouts], [a.question.answer for a in prompts]
        grades: list[Any] = distributed.broadcast_from_main(
            lambda: [tuple(g) for g in self.judges.lenient.grade(texts, answers)]
        )
        return [
            report.Sample(rollout, Grade(*grade))
            for rollout, grade in zip(rollouts, grades, strict=True)
        ]


def _fit(
    cfg: Config,
    given: set[str],
    model: "Model",
    sets: Sequence[sources.Loaded],
    templates: Sequence[str],
    protocol: Protocol,
) -> Config:
    """The config with the sampler's shapes, but for the `given` ones, fitted to the sets; slots are
    as many as there is memory for.

    Raises:
        ConfigError: prompts are longer than `rollout.prompt_buckets`, if these are given, or
            responses could be longer than the model's context.
    """
    from p2o_jax import generate
    from p2o_jax.models import sharding
    from p2o_jax.startup import limits

    lengths = [
        [max(len(model.chat.render(q, z)) for z in templates) for q in part.questions]
        for part in sets
    ]
    most = max(len(part.questions) * protocol.of(len(part.questions))[0] for part in sets)
    slots, at_once = cfg.rollout.slots, min(most, MAX_AT_ONCE * sharding.num_shards(model.mesh))
    cfg = generate.fit(cfg, given, model, [n for part in lengths for n in part], 1)
    limit = config.max_prompt_tokens(cfg)
    problems = [
        f"{part.path}:{line}: a prompt of {n} tokens; config.rollout.prompt_buckets end at {limit}"
        for part, counts in zip(sets, lengths, strict=True)
        for line, n in zip(part.lines, counts, strict=True)
        if n > limit
    ]
    if problems:
        raise ConfigError(*problems[: sources.MAX_PROBLEMS_SHOWN])
    rows = [
        (part.path, *row)
        for part, counts in zip(sets, lengths, strict=True)
        for row in zip(part.lines, counts, strict=True)
    ]
    path, line, most_tokens = max(rows, key=lambda row: row[2])
    if problems := limits.response_problems(
        cfg, model.spec, f"the prompt of {most_tokens:,} tokens in {path}:{line}", most_tokens
    ):
        raise ConfigError(*problems)
    return dataclasses.replace(
        cfg, rollout=dataclasses.replace(cfg.rollout, slots=slots, questions=at_once, group_size=1)
    )


def _problems(flags: dict[str, Any]) -> Iterator[str]:
    if flags["compare"]:
        return
    if bool(flags["model"]) == bool(flags["workdir"]):
        yield "--model or --workdir: one of them is needed, and not both"
    if not flags["benchmarks"]:
        yield (
            f"--benchmarks: required, a list of {', '.join(benchmarks.BENCHMARKS)}, sources, or"
            " NAME=SOURCE"
        )
    if (flags["step"] or flags["template"] == "best") and not flags["workdir"]:
        yield "--step and --template=best need --workdir"
    out = Path(flags["out"])
    if flags["out"] and (out.is_file() or (out / report.RESULTS).exists()):
        yield f"--out={out}: {'is a file' if out.is_file() else 'holds an evaluation already'}"


def _config(flags: dict[str, Any], overrides: Sequence[tuple[str, str]]) -> Config:
    """The run's config, or the defaults, with what has to do with training only made to fit any
    machine.
    """
    from p2o_jax import generate

    workdir = Path(flags["workdir"])
    run_config = loading.read_config(workdir) if flags["workdir"] else Config()
    problems = own.untrusted(run_config.reward, str(workdir / "config.json"))
    if problems and not flags["allow-reward-fn"] and "reward.fn" not in dict(overrides):
        raise ConfigError(*problems)
    values = loading.to_config_dict(run_config)
    num_devices = str(generate.start(values, overrides))
    defaults = {
        "gepa.enabled": "false",
        "optim.micro_rows": num_devices,
        "rollout.slots": "0",
        "arms": "()",
        "lora.rank": "0",
    }
    loading.override(values, [*defaults.items(), *overrides])
    return config.resolve(loading.from_config_dict(values))


def _with_model(
    cfg: Config,
    flags: dict[str, Any],
    overrides: Sequence[tuple[str, str]],
    out: Path,
    stack: ExitStack,
) -> Config:
    """The config with a model directory: the given one, or the run's policy, exported to a new
    one until the stack closes.
    """
    from p2o_jax import export
    from p2o_jax.runtime import distributed

    directory = flags["model"]
    if flags["workdir"]:
        directory = distributed.broadcast_from_main(lambda: str(files.unused(out / "model")))
        if distributed.is_main_process():
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        dtype = "float32" if distributed.jax.devices()[0].platform == "cpu" else "bfloat16"
        step = ["--step", flags["step"]] if flags["step"] else []
        where = [
            f"--config.{key}={text}"
            for key, text in overrides
            if key.startswith(("model.", "world.", "checkpoint."))
        ]
        export.run(
            ["--workdir", flags["workdir"], "--out", directory, "--dtype", dtype, *step, *where]
        )
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, path=directory))


def _template(flags: dict[str, Any]) -> str:
    """The template's text; of `best` the one with the best dev score in the run's newest prompt
    phase.
    """
    if flags["template"] != "best":
        return flags["template"].strip()
    rows = [
        row
        for row in read_rows(Path(flags["workdir"]) / "templates.jsonl")
        if "dev_score" in row and row.get("candidate") is not None
    ]
    newest = [row for row in rows if row["epoch"] == rows[-1]["epoch"]]
    text = max(newest, key=lambda row: row["dev_score"], default={"text": ""})["text"].strip()
    if not text:
        raise ConfigError(
            f"--template=best: no template in {flags['workdir']} was better than none"
        )
    return text


def _notes(part: sources.Loaded) -> list[str]:
    """What has to be told of a set: dropped duplicates, and a size that is not the benchmark's."""
    known = benchmarks.BENCHMARKS.get(part.name)
    size = (
        f"{part.name}: {len(part.questions)} questions; the benchmark has {known.size}"
        if known
        else ""
    )
    return [*part.notices, *([size] if known and known.size != len(part.questions) else [])]


def _samples_file(out: Path, part: sources.Loaded, asked: str) -> Path:
    return out / "samples" / f"{part.name}.{asked}.jsonl"


def _write_samples(path: Path, samples: Sequence[report.Sample], n: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(
        path, "".join(json.dumps(report.row(s, i % n)) + "\n" for i, s in enumerate(samples))
    )


def _compare(flags: dict[str, Any], out: Path) -> None:
    figures, table = out / "comparison.json", out / "comparison.md"
    if problems := files.conflicts("--out", figures, table):
        raise ConfigError(*problems)
    asked: report.Asked = "templated" if flags["asked"] == "templated" else "plain"
    found, text = report.compare(
        [Path(part.strip()) for part in flags["compare"].split(",")], asked
    )
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(figures, found)
    _write_table(table, text)


def _write_table(path: Path, text: str) -> None:
    files.write_whole(path, text)
    print(text)
    print(path)


if __name__ == "__main__":
    command(run)
