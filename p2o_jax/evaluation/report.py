"""What the samples of a benchmark amount to, as numbers, as a Markdown table, and side by side
with other runs.
"""

import dataclasses
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from p2o_jax.config import ConfigError
from p2o_jax.evaluation import estimates, intervals, metrics
from p2o_jax.evaluation.intervals import Scores
from p2o_jax.rewards import normalize
from p2o_jax.rewards.boxed import final_answer
from p2o_jax.rewards.lenient import Grade
from p2o_jax.types import Rollout

RESULTS = "results.json"
Grader = Literal["strict", "lenient"]
GRADERS: tuple[Grader, ...] = ("strict", "lenient")
Asked = Literal["plain", "templated"]


class Sample(NamedTuple):
    """A rollout, which has the verdict of the strict grader (training's reward), and what the
    lenient one says of it.
    """

    rollout: Rollout
    grade: Grade


def measure(samples: Sequence[Sample], n: int) -> dict[str, Any]:
    """The figures of a benchmark with n samples of each question, all of a question's before the
    next one's.
    """
    groups = [samples[i : i + n] for i in range(0, len(samples), n)]
    verdicts, grades = [s.rollout.verdict for s in samples], [s.grade for s in samples]
    scores = [[s.rollout.verdict.answer_score for s in g] for g in groups]
    means = metrics.means([s.rollout for s in samples])
    correct = [[float(s.grade.status == "correct") for s in g] for g in groups]
    return {
        "questions": len(groups),
        "samples": n,
        "strict": _grader(
            scores,
            [sum(s.rollout.succeeded for s in g) for g in groups],
            [[_boxed(s) for s in g] for g in groups],
        ),
        "lenient": _grader(
            correct,
            [int(sum(c)) for c in correct],
            [[_key(s.grade.answer) for s in g] for g in groups],
        ),
        "graders_agree": float(
            np.mean(
                [
                    (v.status == "correct") == (g.status == "correct")
                    for v, g in zip(verdicts, grades, strict=True)
                ]
            )
        ),
        "frac_format": means["format"],
        "frac_truncated": means["frac_truncated"],
        "mean_tokens": means["mean_tokens"],
        "time_outs": {
            "strict": [v.status for v in verdicts].count("time_out"),
            "lenient": [g.status for g in grades].count("time_out"),
        },
        "errors": {
            "strict": [v.status for v in verdicts].count("error"),
            "lenient": [g.status for g in grades].count("error"),
        },
        "question_ids": [g[0].rollout.prompt.question.id for g in groups],
    }


def _grader(
    score_QN: Sequence[Sequence[float]],
    solved_Q: Sequence[int],
    answer_QN: Sequence[Sequence[Hashable | None]],
) -> dict[str, Any]:
    """avg@n with its interval, pass@k, maj@n, and each question's mean score."""
    n = len(score_QN[0])
    mean_Q = metrics.question_means([score for scores in score_QN for score in scores], n)
    return {
        "mean": float(mean_Q.mean()),
        "interval": intervals.of_mean(Scores(mean_Q, n)),
        "standard_error": estimates.standard_error(mean_Q),
        "pass_at": {
            str(k): float(np.mean([estimates.pass_at_k(n, c, k) for c in solved_Q]))
            for k in estimates.ks(n)
        },
        "majority": float(
            np.mean([estimates.majority(a, s) for a, s in zip(answer_QN, score_QN, strict=True)])
        ),
        "by_question": [round(float(m), 6) for m in mean_Q],
    }


def _key(answer: str | None) -> Hashable | None:
    """The same for answers that are plainly the same; None for no answer."""
    return normalize.canonical(answer) if answer else None


def _boxed(sample: Sample) -> Hashable | None:
    return _key(final_answer(sample.rollout.text))


def row(sample: Sample, number: int) -> dict[str, Any]:
    """A line of a benchmark's samples: the response and each grader's verdict."""
    rollout, grade = sample
    return {
        "question_id": rollout.prompt.question.id,
        "n": number,
        "template": rollout.prompt.template,
        "question": rollout.prompt.question.text,
        "answer": rollout.prompt.question.answer,
        "response": rollout.text,
        "tokens": len(rollout.completion.token_ids),
        "stopped": rollout.completion.stopped,
        "strict": {"answer": final_answer(rollout.text), **dataclasses.asdict(rollout.verdict)},
        "lenient": grade._asdict(),
    }


def table(results: Mapping[str, Any]) -> str:
    """The figures of one evaluation as Markdown."""
    lines = [
        "| benchmark | asked | questions | samples | strict | lenient | pass@n | maj@n | format |"
        " truncated | tokens | time-outs |"
    ]
    lines.append("|" + " --- |" * 12)
    for name, variants in results["benchmarks"].items():
        for asked, v in variants.items():
            n = str(v["samples"])
            cells = [
                name,
                asked,
                v["questions"],
                n,
                _with_interval(v["strict"]),
                _with_interval(v["lenient"]),
                _percent(v["strict"]["pass_at"][n]),
            ]
            cells += [
                _percent(v["strict"]["majority"]),
                _percent(v["frac_format"]),
                _percent(v["frac_truncated"]),
            ]
            cells += [
                f"{v['mean_tokens']:,.0f}",
                f"{v['time_outs']['strict']} + {v['time_outs']['lenient']}",
            ]
            lines.append(_line(cells))
    for asked, average in results["average"].items():
        blanks = [""] * 6
        lines.append(
            _line(
                [
                    "**average**",
                    asked,
                    "",
                    "",
                    _with_interval(average["strict"]),
                    _with_interval(average["lenient"]),
                    *blanks,
                ]
            )
        )
    return "\n".join(lines) + "\n"


def average(benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of the benchmarks' means with its interval, by kind of prompt and grader."""
    averages: dict[str, Any] = {}
    for asked in ("plain", "templated"):
        parts = [variants[asked] for variants in benchmarks.values() if asked in variants]
        if parts:
            averages[asked] = {g: _mean_of([_scores(part, g) for part in parts]) for g in GRADERS}
    return averages


def compare(folders: Sequence[Path], asked: Asked = "plain") -> tuple[dict[str, Any], str]:
    """Evaluations side by side, as JSON and as Markdown: the first one's figures, and the others'
    differences from it, paired by question.

    Raises:
        ConfigError: no results in a folder, no benchmark that all have, or one with other questions
            than the first one's.
    """
    read = [_read(folder) for folder in folders]
    names = [
        name
        for name in read[0]["benchmarks"]
        if all(asked in r["benchmarks"].get(name, {}) for r in read)
    ]
    if not names:
        raise ConfigError(
            f"--compare: no benchmark was asked under {asked} prompts in all of"
            f" {', '.join(map(str, folders))}"
        )
    problems = [
        f"{folder / RESULTS}: {name} has other questions there than in {folders[0] / RESULTS}:"
        " differences cannot be paired"
        for folder, r in zip(folders, read, strict=True)
        for name in names
        if r["benchmarks"][name][asked]["question_ids"]
        != read[0]["benchmarks"][name][asked]["question_ids"]
    ]
    if problems:
        raise ConfigError(*problems)
    values = {
        g: [[_scores(r["benchmarks"][name][asked], g) for name in names] for r in read]
        for g in GRADERS
    }
    differences: dict[str, Any] = {
        "folders": [str(f) for f in folders],
        "asked": asked,
        "graders": {},
    }
    lines: list[str] = []
    for grader, by_run in values.items():
        rows = {name: [[run[i]] for run in by_run] for i, name in enumerate(names)} | {
            "average": by_run
        }
        differences["graders"][grader] = {name: _compared(runs) for name, runs in rows.items()}
        title = f"{grader} grader, {asked} prompts"
        lines += _comparison_lines(title, folders, differences["graders"][grader])
    return differences, "\n".join(lines)


def _comparison_lines(
    title: str, folders: Sequence[Path], compared: Mapping[str, list[dict[str, Any]]]
) -> list[str]:
    """The Markdown table of one grader: a row for each benchmark, a column for each folder."""
    header = _line([""] + [str(f) for f in folders])
    lines = [title, "", header, "|" + " --- |" * (len(folders) + 1)]
    for name, runs in compared.items():
        cells = [
            (
                f"{_percent(run['mean'])}, {_difference(run)}"
                if "difference" in run
                else _with_interval(run)
            )
            for run in runs
        ]
        lines.append(_line([name, *cells]))
    return [*lines, ""]


def _compared(runs: Sequence[Sequence[Scores]]) -> list[dict[str, Any]]:
    """For each run, one entry per set: mean and interval, and but for the first the difference
    from the first.
    """
    figures = [_mean_of(run) for run in runs]
    for values, run in zip(figures[1:], runs[1:], strict=True):
        pairs = list(zip(runs[0], run, strict=True))
        values["difference"] = {
            "mean": float(np.mean([(b.mean_Q - a.mean_Q).mean() for a, b in pairs])),
            "interval": intervals.of_difference(*pairs),
        }
    return figures


def _mean_of(sets: Sequence[Scores]) -> dict[str, Any]:
    return {
        "mean": float(np.mean([scores.mean_Q.mean() for scores in sets])),
        "interval": intervals.of_mean(*sets),
    }


def _scores(variant: Mapping[str, Any], grader: Grader) -> Scores:
    """The scores of a benchmark's questions, as they are in RESULTS."""
    return Scores(np.array(variant[grader]["by_question"]), variant["samples"])


def _read(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"--compare: {folder / RESULTS}: {e.strerror if isinstance(e, OSError) else 'not JSON'}"
        ) from e


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _with_interval(figures: Mapping[str, Any]) -> str:
    return f"{_percent(figures['mean'])} [{', '.join(map(_percent, figures['interval']))}]"


def _difference(figures: Mapping[str, Any]) -> str:
    low, high = figures["difference"]["interval"]
    return f"{100 * figures['difference']['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
