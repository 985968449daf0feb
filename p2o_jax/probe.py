"""Asks whether P²O would help: `python -m p2o_jax.probe --model DIR --data FILE --templates FILE`.

Samples questions of FILE plainly and under each template, before any training. The
file of templates is that of gepa.seed_templates: one a paragraph, or JSONL. Shows for the plain
prompt and for each template:

    success     greedily and at the training temperature, each with its 95 % interval
    mixed       groups of --n responses with successes and failures, from which GRPO can learn
    rescued     questions without a plain success that are answered right at least once
    format      responses with a final boxed answer, and how many end before the limit
    masked      tokens of right responses that the paper's mask (distill.eps_low=0.99) leaves out of
                the loss, the most frequent ones by name, with rho, their probability without the
                template over that with it
    tokens      mean length of the prompt and of the response

It ends with a verdict and a recommended `config.distill`. With `--out DIR` the figures go to
DIR/probe.json, the table to DIR/probe.md and the responses to DIR/responses.jsonl. Settings are
those of training: reward, temperature, lengths, prompt template.
"""

from collections.abc import Sequence
from pathlib import Path

from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command

COMMAND_LINE = CommandLine(
    "p2o_jax.probe",
    __doc__,
    Flag("model", "Hugging Face directory", required=True, metavar="DIR"),
    Flag("data", "Questions with answers: a source as in data.path", required=True, metavar="FILE"),
    Flag("templates", "Templates to try, one a paragraph, or JSONL", metavar="FILE"),
    Flag("questions", "Questions to ask, drawn by the seed", 48, kind=int, within=COUNT),
    Flag("n", "Responses per question at the training temperature", 8, kind=int, within=COUNT),
    Flag("out", "Directory for the figures and responses", metavar="DIR"),
)


def run(argv: Sequence[str]) -> None:
    """Probes what the command line asks for.

    Raises:
        ConfigError: anything wrong with flags, files, config or model.
    """
    flags, overrides = COMMAND_LINE.parse(argv)

    from p2o_jax.offline.probe import ProbeOptions, probe

    probe(
        ProbeOptions(
            model=flags["model"],
            data=flags["data"],
            templates=flags["templates"],
            questions=flags["questions"],
            n=flags["n"],
            out=Path(flags["out"]) if flags["out"] else None,
            overrides=overrides,
        )
    )


if __name__ == "__main__":
    command(run)
