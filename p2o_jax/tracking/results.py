"""What came out: result.json of a run, and of several runs side by side with a table and a plot."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2o_jax.runtime import files
from p2o_jax.runtime.console import printable
from p2o_jax.state import Ledger
from p2o_jax.tracking.clock import read_seconds
from p2o_jax.tracking.record_rows import read_strict

PHASES = ("rollout", "reward", "score", "update", "gepa", "eval")


def write_one(workdir: Path, model_directory: Path, ledger: Ledger) -> None:
    """Writes workdir/result.json: the run in a few numbers."""
    evaluations = read_strict(workdir / "evaluations.jsonl")
    metrics = read_strict(workdir / "metrics.jsonl")
    world = model_directory / "world.json"
    result: dict[str, Any] = {
        "accuracy_before": evaluations[0]["accuracy"] if evaluations else None,
        "accuracy": evaluations[-1]["accuracy"] if evaluations else None,
        "by_family": evaluations[-1]["by_family"] if evaluations else None,
        "generated_tokens": max(
            (row.get("ledger/generated_tokens", 0) for row in metrics), default=0
        ),
        "steps": sum("train/loss" in row for row in metrics),
        "seconds_by_phase": {
            phase: round(sum(row.get(f"time/{phase}_s", 0) for row in metrics), 2)
            for phase in PHASES
        },
        "template": (
            evaluations[-1].get("template", "") if evaluations else ""
        ),  # under which `accuracy` was measured
        "seconds": round(sum(read_seconds(workdir)), 1),  # of all starts, without pretraining
        "seconds_pretraining": round(sum(row.get("time/pretraining_s", 0) for row in metrics), 1),
        "ledger": {
            phase: {k: v for k, v in row.items() if k != "seconds"}
            for phase, row in ledger.costs.items()
        },
        "seconds_ledger": {
            phase: round(row["seconds"], 2)
            for phase, row in ledger.costs.items()
            if "seconds" in row
        },
    }
    if losses := [row["eval/nll"] for row in metrics if "eval/nll" in row]:  # supervised training
        result |= {"nll_before": losses[0], "nll": losses[-1]}
    if world.exists():
        result["p_chain_plain"] = json.loads(world.read_text(encoding="utf-8"))["p_chain_plain"]
    files.write_json(workdir / "result.json", result)


def write(workdir: Path, arms: Sequence[str]) -> None:
    """Writes workdir/result.json and comparison.png, and prints a table."""
    results = {
        arm: json.loads((workdir / arm / "result.json").read_text(encoding="utf-8")) for arm in arms
    }
    rows = {arm: read_strict(workdir / arm / "metrics.jsonl") for arm in arms}
    combined: dict[str, Any] = {"base": results[arms[0]]["accuracy_before"]}
    for arm in arms:
        combined |= {
            arm: results[arm]["accuracy"],
            f"tokens_{arm}": results[arm]["generated_tokens"],
        }
    combined |= {
        "p_chain_plain": results[arms[0]].get("p_chain_plain"),
        "seconds": round(sum(results[arm]["seconds"] for arm in arms), 1),
        "seconds_pretraining": round(
            sum(results[arm].get("seconds_pretraining", 0) for arm in arms), 1
        ),
        "templated": [arm for arm in arms if results[arm].get("template")],
        "by_family": {arm: results[arm]["by_family"] for arm in arms},
        "seconds_by_phase": {arm: results[arm]["seconds_by_phase"] for arm in arms},
        "frac_zero_advantage_by_epoch": {
            arm: _by_epoch(rows[arm], "rollout/frac_zero_advantage") for arm in arms
        },
        "hard_by_epoch": {
            arm: [row["gepa/hard_questions"] for row in rows[arm] if "gepa/hard_questions" in row]
            for arm in arms
        },
        "best_templates": {arm: best_templates(workdir / arm) for arm in arms},
    }
    files.write_json(workdir / "result.json", combined)
    plot(workdir, arms, combined["templated"])
    _print_table(workdir, combined, arms)


def print_next(workdir: Path, *runs: Path) -> None:
    """Prints what came out of a single run, and the commands that come next.

    Args:
        workdir: a run directory, or the folder of several.
        runs: the run directories in it; none if it is one itself.
    """
    if not runs:
        result = json.loads((workdir / "result.json").read_text(encoding="utf-8"))
        accuracy = _accuracy_text(result["accuracy"])
        if result["accuracy"] is not None:
            accuracy += f" ({_accuracy_text(result['accuracy_before'])} before training)"
        if "nll" in result:
            accuracy = f"{result['nll']:.3f} nats ({result['nll_before']:.3f} before training)"
        print(
            f"{workdir / 'result.json'}  held out: {accuracy},"
            f" {result['generated_tokens']:,.0f} tokens generated, {result['seconds']:.0f} s"
        )
    policy = runs[-1] if runs else workdir
    print(f"next: python -m p2o_jax.report {workdir} --out {workdir / 'report.html'}")
    print(f"      python -m p2o_jax.export --workdir {policy} --out {policy / 'export'}")


def best_templates(workdir: Path, count: int = 5) -> list[dict[str, Any]]:
    """The templates of the greedy covers with the best dev scores, best first, each text once."""
    chosen = [
        row
        for row in read_strict(workdir / "templates.jsonl")
        if row.get("cover_rank") is not None and row["text"]
    ]
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(chosen, key=lambda row: -row["dev_score"]):
        best.setdefault(
            row["text"],
            {"text": row["text"], "dev_score": round(row["dev_score"], 3), "epoch": row["epoch"]},
        )
    return list(best.values())[:count]


def plot(workdir: Path, arms: Sequence[str], templated: Sequence[str] = ()) -> None:
    """Draws workdir/comparison.png: accuracy and lost groups against generated tokens, hard
    questions by epoch, seconds by phase.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, ((accuracy, lost), (hard, seconds)) = plt.subplots(
        2, 2, figsize=(11, 7.5), constrained_layout=True
    )
    for i, arm in enumerate(arms):
        evaluations = read_strict(workdir / arm / "evaluations.jsonl")
        rows = read_strict(workdir / arm / "metrics.jsonl")
        steps = [r for r in rows if "rollout/frac_zero_advantage" in r]
        times = json.loads((workdir / arm / "result.json").read_text(encoding="utf-8"))[
            "seconds_by_phase"
        ]
        style = {"color": f"C{i}", "label": arm}
        accuracy.plot(
            [_thousands(e["generated_tokens"]) for e in evaluations],
            [e["accuracy"] for e in evaluations],
            "o-",
            ms=3,
            **style,
        )
        zero = _smooth([r["rollout/frac_zero_advantage"] for r in steps])
        lost.plot([_thousands(r["ledger/generated_tokens"]) for r in steps], zero, **style)
        hard.plot(
            [r["gepa/hard_questions"] for r in rows if "gepa/hard_questions" in r],
            "o-",
            ms=3,
            **style,
        )
        width = 0.8 / len(arms)
        seconds.bar(
            [p + i * width for p in range(len(PHASES))], [times[p] for p in PHASES], width, **style
        )
    tokens = "generated tokens (thousands)"
    title = f"Held-out questions, {_accuracy(templated, arms)}"
    accuracy.set(title=title, xlabel=tokens, ylabel="accuracy", ylim=(-0.02, 1.02))
    lost.set(
        title="Groups that teach nothing (zero advantage)",
        xlabel=tokens,
        ylabel="share",
        ylim=(-0.02, 1.02),
    )
    hard.set(title="Hard questions", xlabel="epoch", ylabel="questions", ylim=(0, None))
    seconds.set(
        title="Seconds by phase",
        xticks=[p + 0.4 - 0.4 / len(arms) for p in range(len(PHASES))],
        xticklabels=PHASES,
    )
    for axes in (accuracy, lost, hard, seconds):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(workdir / "comparison.png", dpi=110)
    plt.close(figure)


def _print_table(workdir: Path, combined: dict[str, Any], arms: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    table = Table(
        "",
        _accuracy(combined["templated"], arms),
        "generated tokens",
        *sorted(combined["by_family"][arms[0]] or {}),
        title="Held-out questions",
    )
    table.add_row("base", _accuracy_text(combined["base"]), "0")
    for arm in arms:
        families = combined["by_family"][arm] or {}
        shares = (f"{families[f]:.2f}" for f in sorted(families))
        name = (
            f"{arm} (best template)"
            if arm in combined["templated"] and len(combined["templated"]) < len(arms)
            else arm
        )
        table.add_row(
            name, _accuracy_text(combined[arm]), f"{combined[f'tokens_{arm}']:,.0f}", *shares
        )
    console.print(table)
    for arm in arms:
        for template in combined["best_templates"][arm]:
            console.print(
                f"{arm}: template with dev score {template['dev_score']:.2f}:"
                f" {printable(template['text'])}",
                markup=False,
            )
    console.print(
        f"{workdir / 'result.json'}  {workdir / 'comparison.png'}  {_seconds(combined)}",
        markup=False,
    )


def _accuracy(templated: Sequence[str], arms: Sequence[str]) -> str:
    """What the arms' accuracies are, some or all of which were measured under the best template."""
    if not templated:
        return "plain accuracy"
    return "accuracy under the best template" if len(templated) == len(arms) else "accuracy"


def _seconds(combined: dict[str, Any]) -> str:
    pretraining = combined["seconds_pretraining"]
    return f"{combined['seconds']:.0f} s" + (
        f", and {pretraining:.0f} s of pretraining" if pretraining else ""
    )


def _accuracy_text(accuracy: float | None) -> str:
    return "no held-out questions" if accuracy is None else f"{accuracy:.3f}"


def _by_epoch(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """The mean of a metric over each epoch's steps; an epoch ends with the row of its prompt
    phase.
    """
    means, current = [], []
    for row in rows:
        if name in row:
            current.append(row[name])
        if "gepa/hard_questions" in row and current:
            means.append(round(sum(current) / len(current), 3))
            current = []
    return means + ([round(sum(current) / len(current), 3)] if current else [])


def _smooth(values: Sequence[float], width: int = 5) -> list[float]:
    return [
        sum(values[max(i - width + 1, 0) : i + 1]) / len(values[max(i - width + 1, 0) : i + 1])
        for i in range(len(values))
    ]


def _thousands(tokens: float) -> float:
    return tokens / 1000
