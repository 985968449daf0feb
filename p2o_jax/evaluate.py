"""Evaluates models: `python -m p2o_jax.evaluate --model DIR --benchmarks NAMES --out OUT`.

NAMES is a list such as `aime24,math500,gsm8k=DIR@test,mine=held_out.jsonl`: benchmarks from the hub
(their ids are in p2o_jax/data/benchmarks.py), local sources in their place, your own questions, or
`world`, the held-out questions of the built-in task. As in the paper, sets of fewer than 100
questions are sampled `--k` times (16) at `--temperature`
(0.6); larger ones are answered once, greedily, or `--k-large` times.

`--workdir RUN` evaluates a run's policy with its prompts, chat settings and reward. `--template
TEXT` (or `best`, the run's template with the best dev score) evaluates everything under the
template as well. A run directory may come from somebody else: the code that its `config.reward.fn`
names runs only with `--allow-reward-fn`, or if you name a function yourself with
`--config.reward.fn`. OUT gets:

    results.json    figures of the strict grader (the one used in training) and of the lenient one,
                    with config, prompts and versions
    results.md      the same as a table: mean [95 % interval over questions], pass@n, maj@n, format,
                    truncation, time-outs
    samples/        every sample, NAME.plain.jsonl and NAME.templated.jsonl

`python -m p2o_jax.evaluate --compare OUT,OUT,... --out DIR` compares evaluations: differences from
the first, paired by question. Settings follow as `--config.section.name=value`; responses have at
most `--config.rollout.max_new_tokens` tokens (12,288, or the run's).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from p2o_jax.config.command_line import CommandLine, Flag, Switch, model_or_run
from p2o_jax.config.ranges import COUNT, TEMPERATURE
from p2o_jax.data import benchmarks
from p2o_jax.evaluation import report
from p2o_jax.main import command

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


def run(argv: Sequence[str]) -> None:
    """Evaluates, or compares, as the command line asks.

    Raises:
        ConfigError: anything wrong with flags, config, model or data.
    """
    flags, overrides = COMMAND_LINE.parse(argv, _problems)

    from p2o_jax.evaluation.benchmark import Protocol
    from p2o_jax.offline.evaluate import EvaluateOptions, compare, evaluate
    from p2o_jax.offline.policy import ModelSource

    out = Path(flags["out"])
    if flags["compare"]:
        folders = [Path(part.strip()) for part in flags["compare"].split(",")]
        compare(folders, flags["asked"], out)
        return
    evaluate(
        EvaluateOptions(
            out=out,
            benchmarks=flags["benchmarks"],
            source=ModelSource(
                flags["model"], flags["workdir"], flags["step"], bool(flags["allow-reward-fn"])
            ),
            template=flags["template"],
            protocol=Protocol(flags["k"], flags["k-large"], flags["temperature"]),
            overrides=overrides,
        )
    )


def _problems(flags: dict[str, Any]) -> Iterator[str]:
    if flags["compare"]:
        return
    yield from model_or_run(flags)
    if not flags["benchmarks"]:
        yield (
            f"--benchmarks: required, a list of {', '.join(benchmarks.BENCHMARKS)}, sources, or"
            " NAME=SOURCE"
        )
    out = Path(flags["out"])
    if flags["out"] and (out.is_file() or (out / report.RESULTS).exists()):
        yield f"--out={out}: {'is a file' if out.is_file() else 'holds an evaluation already'}"


if __name__ == "__main__":
    command(run)
