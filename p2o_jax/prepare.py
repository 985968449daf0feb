"""Prepares training sets: `python -m p2o_jax.prepare deepscaler|deepmath|gsm8k|math --out DIR`.

As in the paper, DeepScaleR and DeepMath (difficulty 7 and more, answer types balanced, at most 5 %
yes and no) become a test set and training sets, the smaller ones inside the larger ones. GSM8K and
MATH keep their splits. DIR gets:

    test.jsonl, train_5k.jsonl, ...   questions, for config.data.path and config.data.eval_path
    card.md, card.json                sources, counts, lengths, answer types, digests, and what was
                                      left out and why
    overlaps.jsonl                    with --benchmarks: questions that share 13 words in a row with
                                      a benchmark's
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from p2o_jax import config
from p2o_jax.config import ConfigError
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT, INT32_MAX, Range
from p2o_jax.data import benchmarks, overlap, reader, recipes, sources
from p2o_jax.data.recipes import RECIPES, Recipe, Row
from p2o_jax.data.tables import Record
from p2o_jax.main import command
from p2o_jax.runtime import files
from p2o_jax.runtime.console import Reporter

_ANY_COUNT = Range(ge=0, le=INT32_MAX)
COMMAND_LINE = CommandLine(
    "p2o_jax.prepare",
    __doc__,
    Flag("out", "Directory to write; new or empty", required=True, metavar="DIR"),
    Flag(
        "raw",
        "Local copy of the raw files: a file or folder of any kind that config.data.path takes"
        " (default: the hub)",
        metavar="PATH",
    ),
    Flag("seed", "Seed of the draw", 42, kind=int, within=_ANY_COUNT),
    Flag("test", "Questions of the test set", 500, kind=int, within=_ANY_COUNT),
    Flag(
        "train",
        "Questions of each training set",
        [5000, 10000],
        kind=int,
        within=COUNT,
        several=True,
    ),
    Flag("benchmarks", "Benchmarks to look for, as evaluate takes them", metavar="NAMES"),
    Flag(
        "overlaps",
        "Whether questions that overlap with a benchmark are only reported, or also left out of the"
        " training sets",
        "report",
        choices=("report", "drop"),
    ),
    Flag(
        "model",
        "Hugging Face directory whose tokens lengths are in (default: words)",
        metavar="DIR",
    ),
    positional=Flag("name", "Data set", choices=tuple(RECIPES), metavar="|".join(RECIPES)),
    settings=False,
)
Sets = dict[str, list[Row]]


def run(argv: Sequence[str]) -> None:
    """Prepares what the command line asks for.

    Raises:
        ConfigError: anything wrong with flags or sources.
    """
    flags, _ = COMMAND_LINE.parse(argv, _problems)
    out = Path(flags["out"])
    recipe, reporter = RECIPES[flags["name"]], Reporter()
    index, names = _index(flags["benchmarks"])
    count_tokens = _counter(flags["model"])

    by_split: Sets = {}
    left_out: dict[str, dict[str, int]] = {}
    asked = _asked(recipe, flags["raw"])
    for split, paths in asked.items():
        by_split[split], left_out[split] = recipes.clean(recipe, _records(paths))
    overlaps = (
        [
            overlap.report(index, names, {r.id: r.question for r in rows})
            for rows in by_split.values()
        ]
        if names
        else []
    )
    if flags["overlaps"] == "drop":
        _drop(by_split, left_out, {row["id"] for _, rows in overlaps for row in rows})
    sets = _drawn(recipe, by_split["train"], flags) if recipe.drawn else by_split
    shared = _shared(sets)

    out.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        files.write_whole(
            out / f"{name}.jsonl",
            "".join(json.dumps(r.record(recipe.name), ensure_ascii=False) + "\n" for r in rows),
        )
    if names:
        everything = [row for _, rows in overlaps for row in rows]
        files.write_whole(
            out / "overlaps.jsonl", "".join(json.dumps(row) + "\n" for row in everything)
        )
    card = {
        "name": recipe.name,
        "title": recipe.title,
        "sources": {split: list(paths) for split, paths in asked.items()},
        "seed": flags["seed"] if recipe.drawn else None,
        "left_out": left_out,
        "unit": "tokens" if flags["model"] else "words",
        "sets": {
            name: _described(rows, count_tokens, out / f"{name}.jsonl")
            for name, rows in sets.items()
        },
        "in_test_and_train": shared,
        "overlaps": {split: counts for split, (counts, _) in zip(by_split, overlaps, strict=False)},
        "overlaps_dropped": flags["overlaps"] == "drop",
    }
    files.write_json(out / "card.json", card)
    files.write_whole(out / "card.md", markdown(card))
    reporter.line(f"{out}: " + ", ".join(f"{name} {len(rows):,}" for name, rows in sets.items()))


def _problems(flags: dict[str, Any]) -> Iterator[str]:
    if flags["overlaps"] == "drop" and not flags["benchmarks"]:
        yield "--overlaps=drop needs --benchmarks"
    out = Path(flags["out"])
    if flags["out"] and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        yield f"--out={out}: {'is a file' if out.is_file() else 'exists and is not empty'}"


def _asked(recipe: Recipe, raw: str) -> dict[str, tuple[str, ...]]:
    """The sources of each split: the hub's, or the raw copy's."""
    if not raw:
        return dict(recipe.sources)
    return (
        {"train": (raw,)}
        if recipe.drawn
        else {split: (f"{raw}@{split}",) for split in recipe.sources}
    )


def _records(paths: Sequence[str]) -> Iterator[Record]:
    """The records of some sources.

    Raises:
        ConfigError: with a line for each that cannot be read.
    """
    problems = []
    for path in paths:
        for line, record in sources.records(path):
            if isinstance(record, str):
                problems.append(f"{path}:{line}: {record}" if line else f"{path}: {record}")
            elif not problems:
                yield record
    if problems:
        raise ConfigError(*problems[: sources.MAX_PROBLEMS_SHOWN])


def _index(text: str) -> tuple[overlap.Index, list[str]]:
    if not text:
        return overlap.Index({}), []
    loaded = benchmarks.load_sets(
        text, config.DataConfig(prompt_template=reader.QUESTION), "--benchmarks"
    )
    return overlap.Index({part.name: part.questions for part in loaded}), [
        part.name for part in loaded
    ]


def _counter(model: str) -> Callable[[str], int]:
    if not model:
        return lambda text: len(text.split())
    from p2o_jax.data.chat import load_tokenizer
    from p2o_jax.models import hf_config

    tokenizer = load_tokenizer(hf_config.locate(model))
    return lambda text: len(tokenizer.encode(text))


def _drop(by_split: Sets, left_out: dict[str, dict[str, int]], ids: set[str]) -> None:
    """Takes the questions with these ids out of the training split (a drawn test set comes from
    there, too).
    """
    rows = by_split["train"]
    by_split["train"] = [row for row in rows if row.id not in ids]
    left_out["train"]["overlap with a benchmark"] = len(rows) - len(by_split["train"])


def _drawn(recipe: Recipe, rows: Sequence[Row], flags: dict[str, Any]) -> Sets:
    """The test set and the training sets, each of which holds the smaller ones."""
    sizes = sorted(flags["train"])
    steps = [b - a for a, b in zip([0, *sizes], sizes, strict=False)]
    seed = f"{flags['seed']}/{recipe.name}"
    try:
        test, *parts = recipes.draw(rows, [flags["test"], *steps], recipe.balanced, seed)
    except ConfigError as e:
        train = ",".join(map(str, flags["train"]))
        which = f"--test={flags['test']} --train={train}: lower them"
        raise ConfigError(*(f"{line} ({which})" for line in e.problems)) from e
    sets: Sets = {"test": test} if test else {}
    for i, size in enumerate(sizes):
        sets[f"train_{size // 1000}k" if size % 1000 == 0 else f"train_{size}"] = [
            row for part in parts[: i + 1] for row in part
        ]
    return sets


def _shared(sets: Sets) -> int:
    """Questions that are both in the test set and in a training set: official splits are not
    always disjoint.
    """
    test = {row.id for row in sets.get("test", ())}
    return len({row.id for name, rows in sets.items() if name != "test" for row in rows} & test)


def _described(
    rows: Sequence[Row], count_tokens: Callable[[str], int], path: Path
) -> dict[str, Any]:
    lengths = [count_tokens(row.question) for row in rows]
    quantiles = (
        np.quantile(lengths, (0.05, 0.5, 0.95, 1)).round().astype(int).tolist() if lengths else []
    )
    return {
        "questions": len(rows),
        "answer_types": dict(sorted(Counter(row.answer_type for row in rows).items())),
        "lengths": dict(zip(("p5", "median", "p95", "max"), quantiles, strict=False)),
        "blake2b": hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest(),
    }


def markdown(card: dict[str, Any]) -> str:
    """The card as a page."""
    types = sorted({t for described in card["sets"].values() for t in described["answer_types"]})
    lines = [
        f"# {card['title']}",
        "",
        *(f"- {split}: {', '.join(paths)}" for split, paths in card["sources"].items()),
    ]
    lines += [f"- seed {card['seed']}"] if card["seed"] is not None else []
    for split, reasons in card["left_out"].items():
        lines.append(
            f"- left out of {split}:"
            f" {', '.join(f'{n:,} {reason}' for reason, n in sorted(reasons.items())) or 'nothing'}"
        )
    lines += [
        f"- {card['in_test_and_train']:,} questions are in the test set and in a training set",
        "",
    ]
    lines += [
        _line(["set", "questions", f"median {card['unit']}", "95 %", "longest", *types]),
        "|" + " --- |" * (5 + len(types)),
    ]
    for name, s in card["sets"].items():
        lengths = [s["lengths"].get(q, "") for q in ("median", "p95", "max")]
        lines.append(
            _line(
                [
                    name,
                    f"{s['questions']:,}",
                    *lengths,
                    *(s["answer_types"].get(t, 0) for t in types),
                ]
            )
        )
    if card["overlaps"]:
        done = "dropped from the training sets" if card["overlaps_dropped"] else "reported only"
        lines += ["", f"Overlaps of {overlap.N} words in a row with benchmarks ({done}):", ""]
        lines += [
            _line(["split", "benchmark", "questions", "of the benchmark"]),
            "|" + " --- |" * 4,
        ]
        for split, counts in card["overlaps"].items():
            lines += [
                _line([split, name, c["questions"], c["benchmark_questions"]])
                for name, c in counts.items()
            ]
    else:
        lines += ["", "Overlaps with benchmarks were not looked for (`--benchmarks`)."]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    command(run)
