"""Exports a policy: `python -m p2o_jax.export --workdir RUN --out DIR [--step N|best]`.

DIR becomes a Hugging Face directory with the tokenizer of the run's model. If that model has been
moved since, `--config.model.path=DIR` gives its new place.

Responses end, and chat messages are rendered, as in the run: config.json and generation_config.json
name the run's stop tokens, and chat_template.jinja is config.chat.template if the run had one.
p2o_jax.json holds what else the run's prompts had, which other programs must be given:
system_prompt and enable_thinking (an argument of many chat templates), and prompt_template, which
questions were put into.
"""

from collections.abc import Sequence
from pathlib import Path

from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.main import command

COMMAND_LINE = CommandLine(
    "p2o_jax.export",
    __doc__,
    Flag("workdir", "Run directory", required=True, metavar="RUN"),
    Flag("out", "Directory to write; new or empty", required=True, metavar="DIR"),
    Flag(
        "step",
        "Policy step of the checkpoint, or best: the one with the highest held-out accuracy"
        " (default: the newest)",
        metavar="N|best",
    ),
    Flag("dtype", "Dtype of the weights", "bfloat16", choices=("bfloat16", "float32")),
    Flag(
        "adapter",
        "Write LoRA adapters as files for peft, in the dtype they were trained in; without it they"
        " are merged into the weights",
        choices=("peft",),
    ),
)


def run(argv: Sequence[str]) -> None:
    """Exports what the command line asks for.

    Raises:
        ConfigError: anything wrong with flags, run, model or target.
    """
    flags, overrides = COMMAND_LINE.parse(argv)

    from p2o_jax.offline.export import ExportOptions, export

    export(
        ExportOptions(
            workdir=Path(flags["workdir"]),
            out=Path(flags["out"]),
            step=flags["step"],
            dtype=flags["dtype"],
            adapter=flags["adapter"],
            overrides=overrides,
        )
    )


if __name__ == "__main__":
    command(run)
