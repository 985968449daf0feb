"""Collects the data of a page from the files of workdirs.

Parts may be missing for runs that are still training or were killed.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from p2o_jax.config import ConfigError
from p2o_jax.gepa.search import REJECTIONS, SHORT_REASONS
from p2o_jax.report import curves, questions, rows, samples, templates
from p2o_jax.report.prompt_text import shared_text
from p2o_jax.runtime.console import printable
from p2o_jax.tracking import record_rows
from p2o_jax.tracking.metric_names import AMOUNTS, METRICS, PHASES, meaning
from p2o_jax.tracking.record_rows import Row
from p2o_jax.types import STATUSES

MAX_NOTES = 50
FILES = ("metrics", "evaluations", "templates", "questions", "samples")


def workdirs(paths: Sequence[str]) -> list[Path]:
    """The workdirs of runs: each path itself, or the arms inside it.

    Raises:
        ConfigError: one line per path that contains no run.
    """
    dirs: list[Path] = []
    problems = []
    for path in map(Path, paths):
        inside = sorted(p.parent for p in path.glob("*/config.json"))
        runs = [path] if (path / "config.json").is_file() else inside
        dirs += runs
        if not runs:
            problems.append(f"{path}: no run in it (no config.json)")
    if problems:
        raise ConfigError(*problems)
    return list(dict.fromkeys(dirs))


def page_data(paths: Sequence[Path], samples_bytes: int) -> dict[str, Any]:
    """All data of a page, as JSON values.

    `samples_bytes` limits the size of the samples of all runs together.
    """
    names = _names(paths)
    runs = [
        read(path, name, samples_bytes // len(paths))
        for path, name in zip(paths, names, strict=True)
    ]
    measured = sorted(
        {name for run in runs for kind in run["curves"].values() for name in kind["values"]}
    )
    meanings = {name: meaning(name) or "unknown to this version" for name in measured}
    return {
        "runs": runs,
        "measured": measured,
        "meanings": METRICS | meanings,
        "phases": PHASES,
        "amounts": AMOUNTS,
        "rejections": {name: [SHORT_REASONS[name], text] for name, text in REJECTIONS.items()},
        "statuses": STATUSES,
    }


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest trailing parts that distinguish the paths."""
    parts = [path.resolve().parts for path in paths]
    length = next((n for n in range(1, 99) if len({p[-n:] for p in parts}) == len(parts)), 99)
    return [printable("/".join(p[-length:])) for p in parts]


def read(workdir: Path, name: str, samples_bytes: int) -> dict[str, Any]:
    """The data of one run."""
    notes: list[str] = []
    config = record_rows.read_json(workdir / "config.json", notes)
    versions = record_rows.read_json(workdir / "versions.json", notes)
    success_above = record_rows.field(
        config, ("reward", "success_above"), record_rows.NUMBER, 0.5, "config.json", notes
    )
    texts: dict[str, str] = {}
    read = {file: record_rows.read(workdir / f"{file}.jsonl", notes) for file in FILES[:-1]}
    metrics = list(read["metrics"])
    finite = curves.finite(metrics)
    if bad := curves.not_finite(metrics):
        notes.append(
            f"metrics.jsonl: {bad} values are not finite numbers and are left out of the curves"
        )
    evaluations = curves.evaluations(read["evaluations"])
    trees = templates.epochs(_noting_texts(read["templates"], texts), success_above)
    lives = questions.lives(_noting_texts(read["questions"], texts))
    shown = samples.chosen(workdir / "samples.jsonl", samples_bytes, notes)
    wanted = {question for tree in trees for question in _question_ids(tree)} | set(
        lives["questions"]
    )
    recorded = {name: text for name, text in texts.items() if name in wanted}
    recorded |= samples.question_texts(workdir / "samples.jsonl", wanted - recorded.keys())
    sampled = {shown["texts"][row["question"]] for row in shown["rows"]}
    prompt = shared_text({*recorded.values(), *sampled}, _prompt_template(config))
    return {
        "name": name,
        "summary": _summary(workdir, config, finite, evaluations, notes),
        "curves": curves.of_rows(metrics),
        "evaluations": evaluations,
        "templates": trees,
        "questions": lives,
        "samples": shown,
        "question_texts": {
            name: rows.clip(prompt.without(text), samples.QUESTION_CHARS)
            for name, text in recorded.items()
        },
        "prompt_text": prompt,
        "ledger": _ledger(finite),
        "config": _flat(config),
        "versions": {key: _text(value) for key, value in versions.items()},
        "notes": notes
        if len(notes) <= MAX_NOTES
        else [*notes[:MAX_NOTES], f"{len(notes) - MAX_NOTES} further notes"],
    }


def _question_ids(tree: dict[str, Any]) -> set[str]:
    return set(tree["dev"]) | {
        question for proposal in tree["rejected"] for question in proposal["minibatch"]
    }


def _noting_texts(rows: Iterable[Row], texts: dict[str, str]) -> Iterator[Row]:
    """The rows; texts of questions in them are put into `texts`, by id."""
    for row in rows:
        texts.update(row.get("questions", {}))
        if "question" in row:
            texts[row["question_id"]] = row["question"]
        yield row


def _prompt_template(config: dict[str, Any]) -> str:
    data = config.get("data")
    template = data.get("prompt_template") if isinstance(data, dict) else None
    return template if isinstance(template, str) else ""


def _summary(
    workdir: Path,
    config: dict[str, Any],
    metrics: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    notes: list[str],
) -> dict[str, Any]:
    """The main figures of a run.

    Its `seconds` include all starts of the run, but not the pretraining of the base model.

    Args:
        workdir: the run directory.
        config: its settings.
        metrics: its rows of metrics, without values that are not finite.
        evaluations: the result of `curves.evaluations`.
        notes: receives a line for every problem with a file.
    """
    result = record_rows.read_json(workdir / "result.json", notes)
    seconds = record_rows.read_seconds(workdir / "seconds.json", notes)
    of_result = record_rows.field(
        result, ("seconds",), record_rows.NUMBER, None, "result.json", notes
    )
    totals = {
        name: max((row.get(f"ledger/{name}", 0) for row in metrics), default=0)
        for name in ("generated_tokens", "rollouts", "flops")
    }
    return {
        "method": _method(config, record_rows.read_json(workdir / "run.json", notes)),
        "finished": bool(result),
        "steps": sum("train/bad_updates" in row for row in metrics),
        "seconds": of_result if seconds is None else seconds,
        "seconds_pretraining": round(sum(row.get("time/pretraining_s", 0) for row in metrics), 1),
        "before": evaluations[0] if evaluations else None,
        "after": evaluations[-1] if evaluations else None,
        "seconds_by_phase": _seconds_by_phase(metrics),
        **totals,
    }


def _method(config: dict[str, Any], run: dict[str, Any]) -> str:
    """The training method, derived from the settings."""
    if run.get("loop") == "sft":
        return "Supervised training"
    gepa, train = (
        part if isinstance(part := config.get(name), dict) else {} for name in ("gepa", "train")
    )
    if gepa.get("enabled") is False:
        return "GRPO"
    if train.get("epochs") == 0:
        return "GEPA alone, no training,"
    return "GEPA once, then GRPO," if gepa.get("schedule") == "first" else "P²O"


def _seconds_by_phase(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The sums of time/NAME_s, without compilation, which is part of the others."""
    names = {
        name
        for row in metrics
        for name in row
        if name.startswith("time/") and not name.startswith(("time/ledger_", "time/compile"))
    }
    sums = {name: sum(row.get(name, 0) for row in metrics) for name in sorted(names)}
    return {
        name.removeprefix("time/").removesuffix("_s"): round(value, 2)
        for name, value in sums.items()
        if value >= 0.01
    }


def _ledger(metrics: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The total amounts and `seconds` of each phase."""
    last: dict[str, float] = {}
    for row in metrics:
        last |= row
    names = {name: f"ledger/{{}}_{name}" for name in AMOUNTS} | {"seconds": "time/ledger_{}_s"}
    table = {
        phase: {
            name: last[key.format(phase)]
            for name, key in names.items()
            if key.format(phase) in last
        }
        for phase in PHASES
    }
    return {phase: row for phase, row in table.items() if row}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The settings by their dotted keys, as text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": _text(value)}
        )
    return flat


def _text(value: Any) -> str:
    return rows.clip(value, 500)
