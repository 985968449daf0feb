"""Scores: `python -m p2o_jax.score --model DIR --tokens FILE.npz --out OUT.npz`.

In: `input_ids` and `attention_mask` [B, T], each row one sequence, padded on the left or on the
    right. Out: `token_logprobs` [B, T],
float32: log p of each token given those before it, at temperature 1; 0 for the first token of a row
and for padding. This is the way to compare numbers with another engine: the model runs as training
runs it, in config.model.compute_dtype.
"""

from collections.abc import Sequence
from pathlib import Path

from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.main import command

COMMAND_LINE = CommandLine(
    "p2o_jax.score",
    __doc__,
    Flag("model", "Hugging Face directory", required=True, metavar="DIR"),
    Flag("tokens", "Token ids and mask to score", required=True, metavar="FILE.npz"),
    Flag("out", "Output file", required=True, metavar="OUT.npz"),
)


def run(argv: Sequence[str]) -> None:
    """Scores the command line's file.

    Raises:
        ConfigError: anything wrong with flags, file, config or model.
    """
    flags, overrides = COMMAND_LINE.parse(argv)

    from p2o_jax.offline.score import ScoreOptions, score

    paths = Path(flags["tokens"]), Path(flags["out"])
    score(ScoreOptions(flags["model"], *paths, overrides))


if __name__ == "__main__":
    command(run)
