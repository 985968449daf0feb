r"""Tasks on a real model: the questions of examples/laptop, with answers in a form that the model
never uses by itself.

Besides the held-out questions there are two sets that differ from training in kind: `families`,
about words of other kinds, and `wording`, the held-out questions in other words. Training
questions ask for plurals, opposites and capitals.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.laptop import questions
from p2o_jax.config import loading

ROOT = Path(__file__).parents[2]
# (wording, subject=answer …); no question of training is of these families
FAMILIES = {
    "past tense": (
        "What is the past tense of {}?",
        "go=went see=saw run=ran eat=ate take=took give=gave come=came write=wrote walk=walked"
        " play=played make=made find=found",
    ),
    "comparative": (
        "What is the comparative of {}?",
        "big=bigger small=smaller good=better bad=worse fast=faster slow=slower tall=taller"
        " happy=happier old=older young=younger cold=colder easy=easier",
    ),
    "language": (
        "Which language is spoken in {}?",
        "France=French Germany=German Italy=Italian Spain=Spanish Japan=Japanese Russia=Russian"
        " Greece=Greek Poland=Polish Portugal=Portuguese Turkey=Turkish Sweden=Swedish"
        " Hungary=Hungarian",
    ),
}
WORDINGS = {
    "What is the plural of ": "Give me the plural form of the word {}.",
    "What is the opposite of ": "Which word means the opposite of {}?",
    "What is the capital of ": "Name the capital city of {}.",
}
SHOTS = (("plural of cat", "cats"), ("opposite of big", "small"), ("capital of Spain", "Madrid"))
# settings of examples/laptop that other commands are given as well
SAMPLING = (
    "reward.kind",
    "rollout.max_new_tokens",
    "rollout.temperature",
    "rollout.prompt_buckets",
    "data.prompt_template",
    "data.max_prompt_tokens",
)
LEARNING = (
    "optim.lr",
    "optim.warmup_frac",
    "optim.row_tokens",
    "optim.micro_rows",
    "model.remat",
)
PATTERN = {"reward.fn": "p2o_jax.rewards.examples:pattern"}


def shots(form: Callable[[str], str]) -> str:
    """Returns three worked examples with answers of a form, as a template."""
    return "\n".join(f"Q: What is the {question}?\nA: {form(answer)}" for question, answer in SHOTS)


class Task(NamedTuple):
    """A form of answers.

    Args:
        name: key in the rows.
        what: words of the table.
        wanted: the `answer` of a question's row, by the answer in plain words.
        settings: settings over examples/laptop.
        templates: templates to begin with; none: those of examples/laptop.
    """

    name: str
    what: str
    wanted: Callable[[str], str]
    settings: Mapping[str, str] = {}
    templates: tuple[str, ...] = ()


TASKS = {
    task.name: task
    for task in (
        Task("boxed", r"`\boxed{cats}`", str),
        Task(
            "phrase",
            "`The answer is cats.`",
            lambda answer: rf"The answer is {re.escape(answer)}\.?",
            PATTERN,
            (
                'Begin your reply with "The answer is".',
                "Reply in the form: The answer is WORD.",
                shots(lambda answer: f"The answer is {answer}."),
            ),
        ),
        Task(
            "quoted",
            '`It is "cats".`',
            lambda answer: rf'It is "{re.escape(answer)}"\.?',
            PATTERN,
            (
                'Answer with "It is", and then the answer in quotation marks.',
                'Reply in the form: It is "WORD".',
                shots(lambda answer: f'It is "{answer}".'),
            ),
        ),
        Task(
            "exclaimed",
            "`The answer is: cats!`",
            lambda answer: f"The answer is: {re.escape(answer)}!",
            PATTERN,
            (
                'Begin your reply with "The answer is:", and end it with "!".',
                "Reply in the form: The answer is: WORD!",
                shots(lambda answer: f"The answer is: {answer}!"),
            ),
        ),
    )
}


def like_training(keys: Sequence[str]) -> dict[str, str]:
    """Returns the values of these settings in examples/laptop, as on a command line."""
    values: Any = loading.load_config_dict(str(ROOT / "examples" / "laptop" / "config.py"))
    return {key: str(values[section][name]) for key in keys for section, name in [key.split(".")]}


def write(task: Task, folder: Path) -> dict[str, str]:
    """Writes a task's questions and templates, and returns the settings that name them."""
    train, held_out = questions.rows()
    families = [
        {"question": wording.format(subject), "answer": answer, "family": family}
        for family, (wording, pairs) in FAMILIES.items()
        for subject, answer in (pair.split("=") for pair in pairs.split())
    ]
    wording = [{**row, "question": reworded(row["question"])} for row in held_out]
    parts = {"train": train, "heldout": held_out, "families": families, "wording": wording}
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        text = "".join(
            json.dumps({**row, "answer": task.wanted(row["answer"])}) + "\n" for row in rows
        )
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    sets = ("heldout", "families", "wording")
    settings = {
        **task.settings,
        "data.path": str(folder / "train.jsonl"),
        "data.eval_path": ",".join(f"{name}={folder / name}.jsonl" for name in sets),
    }
    if task.templates:
        templates = folder / "templates.jsonl"
        text = "".join(json.dumps({"template": text}) + "\n" for text in task.templates)
        templates.write_text(text, encoding="utf-8")
        settings["gepa.seed_templates"] = str(templates)
    return settings


def reworded(question: str) -> str:
    """Returns a question of the task in other words."""
    known, wording = next(item for item in WORDINGS.items() if question.startswith(item[0]))
    return wording.format(question.removeprefix(known).removesuffix("?"))
