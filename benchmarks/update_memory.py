"""Memory of a training run on a CPU, as estimated at its start and as measured:
`python -m benchmarks.update_memory [--models toy laptop half]`.

Models have the shapes of the toy world's, of SmolLM2-135M and of Qwen2.5-0.5B, random weights and
a random reward. A prompt phase comes first, except with `half`, and then a few steps. Each runs in
a process of its own. Estimated is the largest sum of its table, measured the peak resident memory
of the process.
"""

import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import commands, report
from benchmarks.load import write_files
from benchmarks.report import Target
from p2o_jax.config import ConfigError
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.main import command

PHASES = ("sampling", "updating", "saving")
REWARD = """import random


def coin(messages, response, answer, meta):
    return float(random.random() < 0.1)
"""


class Case(NamedTuple):
    """A model, and the settings to train it with."""

    config: str
    spec: dict[str, Any]
    settings: dict[str, Any]


CASES = {
    "toy": Case(
        "quickstart",
        {
            "family": "qwen3",
            "qk_norm": True,
            "vocab": 192,
            "width": 128,
            "layers": 3,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 32,
            "mlp": 256,
        },
        {"gepa.schedule": "first", "train.max_generated_tokens": 60_000},
    ),
    "laptop": Case(
        "laptop",
        {
            "family": "llama",
            "vocab": 49152,
            "width": 576,
            "layers": 30,
            "heads": 9,
            "kv_heads": 3,
            "head_dim": 64,
            "mlp": 1536,
        },
        {"gepa.schedule": "first", "train.max_generated_tokens": 14_000},
    ),
    "half": Case(
        "laptop",
        {
            "family": "qwen2",
            "qkv_bias": True,
            "vocab": 151936,
            "width": 896,
            "layers": 24,
            "heads": 14,
            "kv_heads": 2,
            "head_dim": 64,
            "mlp": 4864,
        },
        {
            "gepa.enabled": False,
            "model.remat": "full",
            "rollout.questions": 4,
            "optim.minibatch_questions": 4,
            "train.max_generated_tokens": 1500,
        },
    ),
}
COMMAND_LINE = CommandLine(
    "benchmarks.update_memory",
    __doc__,
    Flag("models", "Models to train", list(CASES), several=True, choices=tuple(CASES)),
    Flag("folder", "Folder for the models and runs", tempfile.gettempdir(), metavar="DIR"),
)


def run(argv: Sequence[str]) -> None:
    """Trains, prints a table, and reports.

    Raises:
        ConfigError: the flags are invalid, or a run fails.
    """
    flags, overrides = COMMAND_LINE.parse(argv)
    figures: dict[str, Any] = {}
    columns = ("model", *(f"while {phase}" for phase in PHASES), "measured", "ratio")
    print(f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|", sep="\n")
    for name in flags["models"]:
        with tempfile.TemporaryDirectory(dir=flags["folder"], prefix="p2o-memory-") as folder:
            figures[name] = row = measure(CASES[name], Path(folder), dict(overrides))
        print("|", " | ".join([name, *(f"{value:.2f}" for value in row.values())]), "|", flush=True)
    targets: dict[str, Target] = {}
    for name in figures:
        targets[f"{name}: not too little"] = Target(f"{name}_ratio", ">=", 0.8)
        targets[f"{name}: not too much"] = Target(f"{name}_ratio", "<=", 1.2)
    rows = {f"{name}_{key}": x for name, row in figures.items() for key, x in row.items()}
    report.finish("update_memory", rows, targets)


def measure(case: Case, folder: Path, overrides: dict[str, str]) -> dict[str, float]:
    """GiB of a run: each sum of its table, its peak, and the ratio of the largest sum to that."""
    model, reward = folder / "model", folder / "reward.py"
    write_model(model, case.spec)
    reward.write_text(REWARD)
    for number, name in enumerate(("train", "heldout")):
        (folder / f"{name}.jsonl").write_text(questions(64 * number, 64))
    settings = {
        "arms": "()",
        "model.path": model,
        "data.path": folder / "train.jsonl",
        "data.eval_path": folder / "heldout.jsonl",
        "reward.fn": f"{reward}:coin",
        "train.compile_cache": folder / "compiled",
        **case.settings,
        **overrides,
    }
    words = [
        *(sys.executable, "-m", "p2o_jax.main", f"--config=configs/{case.config}.py"),
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]
    ended = commands.run([*words, f"--workdir={folder / 'run'}"])
    if ended.code:
        raise ConfigError(
            f"the run ended with exit code {ended.code}: {ended.output[-commands.END :]}"
        )
    sums, peak = sums_of(ended.output), ended.usage.peak_gib
    return {**sums, "measured": peak, "ratio": round(max(sums.values()) / peak, 3)}


def questions(first: int, count: int) -> str:
    """The lines of a file of questions, each other words of the toy world."""
    from p2o_jax.toy_world import languages, tokenizer

    words = tokenizer.vocabulary(languages.SMALL)[-64:]
    pairs = itertools.islice(itertools.permutations(words, 2), first, first + count)
    return "".join(json.dumps({"question": " ".join(p), "answer": "-"}) + "\n" for p in pairs)


def sums_of(text: str) -> dict[str, float]:
    """GiB of the sums in the table that a run prints."""
    rows = [line.split() for line in text.splitlines() if line.startswith("  while ")]
    gib = {row[1]: float(row[2]) / (1 if row[3] == "GiB" else 1024) for row in rows}
    return {phase: gib[phase] for phase in PHASES}


def write_model(directory: Path, spec: dict[str, Any]) -> None:
    """Writes a model directory with random weights and the toy world's tokenizer."""
    from p2o_jax.models import hf, hf_config
    from p2o_jax.models.spec import ModelSpec
    from p2o_jax.toy_world import languages, tokenizer

    tokenizer.write_tokenizer(directory, languages.SMALL)
    model = ModelSpec(tied=True, max_positions=1024, **spec)
    hf_config.write_json(directory / "config.json", hf_config.write_config(model, "bfloat16", {}))
    write_files(directory, {t.name: t.shape for t in hf.tensors(model)})


if __name__ == "__main__":
    command(run)
