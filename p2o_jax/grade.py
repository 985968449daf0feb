"""Grades responses: `python -m p2o_jax.grade --responses FILE.jsonl --out OUT.jsonl`.

A line of FILE has a `response` and the reference `answer`, and any other fields. OUT has the same
lines, with these fields added or replaced:

    strict     the score of the strict grader, the reward of training: 1.0 or 0.0
    lenient    1.0 if the lenient grader of evaluations accepts the response, else 0.0
    extracted  the answer that was read from the response; null if there is none
    status     of the strict grader: correct, wrong, no_answer, time_out or error

The share of right responses, and the lines on which the graders disagree, are shown on screen.
Settings follow as `--config.reward.name=value`: `kind=exact` compares texts, `fn` replaces the
strict grader, `timeout_s` is the limit for one answer, `workers` the number of processes.
"""

from collections.abc import Sequence
from pathlib import Path

from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.main import command

COMMAND_LINE = CommandLine(
    "p2o_jax.grade",
    __doc__,
    Flag("responses", "JSONL file of responses and answers", required=True, metavar="FILE.jsonl"),
    Flag("out", "Output file", required=True, metavar="OUT.jsonl"),
)


def run(argv: Sequence[str]) -> None:
    """Grades the responses of the command line's file.

    Raises:
        ConfigError: anything wrong with flags, files or config.
    """
    flags, overrides = COMMAND_LINE.parse(argv)

    from p2o_jax.offline.grade import GradeOptions, grade

    grade(GradeOptions(Path(flags["responses"]), Path(flags["out"]), overrides))


if __name__ == "__main__":
    command(run)
