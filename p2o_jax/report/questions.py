"""The history of each question that was ever hard, by epoch, and when it was internalised."""

from collections.abc import Iterable, Mapping
from typing import Any

from p2o_jax.report.rows import is_drawn

MAX_CELLS = 100_000  # pairs of question and epoch per run


def lives(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The histories of hard questions.

    Returns:
        `questions` by id, `epochs` in order, `templates` (successes and rollouts in training, by
        template id), and counts. A question has `hard`, `internalised` and `relapsed` (each an
        epoch or None), its own `templates`, and `epochs`, a list of [epoch, was hard, plain
        successes, plain rollouts, templated successes, templated rollouts]. If there are more than
        MAX_CELLS pairs of question and epoch, a sample of the questions is returned.
    """
    by_id: dict[str, dict[str, Any]] = {}
    templates: dict[str, list[int]] = {}
    epochs: set[int] = set()
    for row in rows:
        epochs.add(row["epoch"])
        question = by_id.setdefault(row["question_id"], {"epochs": [], "templates": {}})
        question |= {name: row[f"{name}_epoch"] for name in ("internalised", "relapsed")} | {
            "hard": row["first_hard_epoch"]
        }
        question["epochs"].append(
            [row["epoch"], int(row["hard"]), *row["plain"], *row["templated"]]
        )
        for template, tally in row["templates"].items():
            for into in (templates, question["templates"]):
                into[template] = [
                    a + b for a, b in zip(into.get(template, (0, 0)), tally, strict=True)
                ]
    hard = {name: question for name, question in by_id.items() if question["hard"] is not None}
    share = MAX_CELLS / max(sum(len(question["epochs"]) for question in hard.values()), 1)
    return {
        "questions": {name: question for name, question in hard.items() if is_drawn(name, share)},
        "epochs": sorted(epochs),
        "templates": templates,
        "num_ever_hard": len(hard),
        "num_seen": len(by_id),
    }
