"""GRPO against P²O on a real model, on a laptop: `python -m examples.laptop`.

Downloads SmolLM2-135M-Instruct (93 MB), converts it, writes 64 questions to train on and 48 held
out, and trains with GRPO and with P²O until each has generated 24,000 tokens, those of the search
for templates included. The same command continues an interrupted one. OUT/result.json has `base`,
`grpo`, `p2o`, `tokens_grpo`, `tokens_p2o` and `seconds`, OUT/comparison.png the curves, and
OUT/report.html everything else. Settings go to both runs.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from examples.laptop import questions, smollm2
from p2o_jax import main
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.report import __main__ as report

COMMAND_LINE = CommandLine(
    "examples.laptop",
    __doc__,
    Flag("out", "Folder of the results", "runs/laptop", metavar="DIR"),
    Flag("model", "Hugging Face directory of another model", metavar="DIR"),
    Flag("data", "Folder of the questions and the model", ".cache/laptop", metavar="DIR"),
)


def run(argv: Sequence[str]) -> None:
    """Gets the model and the questions, trains both arms, and writes the report.

    Raises:
        ConfigError: anything wrong with flags, settings or model.
        SystemExit: the model cannot be had.
    """
    flags, overrides = COMMAND_LINE.parse(argv)
    data, out = Path(flags["data"]), Path(flags["out"])
    model = Path(flags["model"] or smollm2.ensure(data / "smollm2-135m-instruct"))
    train, held_out = questions.write(data)
    settings = {
        "model.path": model,
        "data.path": train,
        "data.eval_path": held_out,
        **dict(overrides),
    }
    main.main(
        [
            f"--config={Path(__file__).with_name('config.py')}",
            f"--workdir={out}",
            *(f"--config.{key}={value}" for key, value in settings.items()),
        ]
    )
    if importlib.util.find_spec("plotly"):
        report.main([str(out), f"--out={out / 'report.html'}"])


if __name__ == "__main__":
    main.command(run)
