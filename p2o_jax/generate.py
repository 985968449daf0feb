"""Samples: `python -m p2o_jax.generate --model DIR --prompts FILE.jsonl [--out OUT.jsonl]`.

`--workdir RUN` in place of `--model` samples from a run's policy, with its chat settings, reward
and response length; `--template best` then uses the run's template with the best dev score.

A line of FILE has a `prompt` or a `question`: a text, or a list of chat messages. It is used as it
is: unlike in training, config.data.prompt_template adds nothing unless you set it. `--template
TEXT` puts a template before it, `--n K` samples K responses to each. `--templates FILE` asks the
prompts plainly and under each template of a file like gepa.seed_templates. Where prompts have
answers, the share of right responses is shown. Each response is a line of OUT, or of standard
output:

    index      number of the prompt, from 0
    n          number of the response to this prompt, from 0
    text       the response
    tokens     its length
    token_ids  its tokens, the stop token included
    logp       sum of the tokens' log-probs at the sampling temperature
    stopped    false: cut at config.rollout.max_new_tokens (512 unless set)
    template   with --templates: the template; empty for none
    verdict    if the prompt's line has an `answer`: the verdict of config.reward

What is sampled depends on the model, the prompt, its index, n and config.train.seed, not on the
rest of the file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2o_jax.config.command_line import CommandLine, Flag, Switch, model_or_run
from p2o_jax.config.ranges import COUNT, TEMPERATURE_OR_GREEDY
from p2o_jax.main import command

COMMAND_LINE = CommandLine(
    "p2o_jax.generate",
    __doc__,
    Flag("model", "Hugging Face directory", metavar="DIR"),
    Flag("workdir", "Run directory whose policy to sample from", metavar="RUN"),
    Flag(
        "step",
        "Policy step of the run's checkpoint, or best: the one with the highest held-out accuracy"
        " (default: the newest)",
        metavar="N|best",
    ),
    Flag("prompts", "JSONL file of prompts", required=True, metavar="FILE.jsonl"),
    Flag(
        "template",
        "Prompt template to ask every prompt under, or best: the run's",
        metavar="TEXT|best",
    ),
    Flag(
        "templates",
        "Templates to ask the prompts under, besides none: one a paragraph, or JSONL",
        metavar="FILE",
    ),
    Flag("n", "Completions per prompt", 1, kind=int, within=COUNT),
    Flag(
        "temperature",
        "Sampling temperature; 0 is greedy (default: config.rollout.temperature)",
        None,
        kind=float,
        within=TEMPERATURE_OR_GREEDY,
    ),
    Flag("out", "Output file; standard output if not given", metavar="OUT.jsonl"),
    Switch("allow-reward-fn", "Run the code that the run's config.reward.fn names"),
)


def run(argv: Sequence[str]) -> None:
    """Samples what the command line asks for.

    Raises:
        ConfigError: anything wrong with flags, prompts, config or model.
    """
    flags, overrides = COMMAND_LINE.parse(argv, _problems)

    from p2o_jax.offline.generate import GenerateOptions, generate
    from p2o_jax.offline.policy import ModelSource

    generate(
        GenerateOptions(
            source=ModelSource(
                flags["model"], flags["workdir"], flags["step"], bool(flags["allow-reward-fn"])
            ),
            prompts=Path(flags["prompts"]),
            template=flags["template"],
            templates=flags["templates"],
            n=flags["n"],
            out=flags["out"],
            temperature=flags["temperature"],
            overrides=overrides,
        )
    )


def _problems(flags: dict[str, Any]) -> list[str]:
    """A line for each broken rule between flags."""
    both = bool(flags["template"] and flags["templates"])
    return [*model_or_run(flags), *["--template and --templates: give one of them"] * both]


if __name__ == "__main__":
    command(run)
