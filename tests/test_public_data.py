"""Public data through the real command: from raw files in the layouts of other projects, and from
reasoning-gym, to training steps with rewards.

The rows are ours, in the exact columns of the public sets. The toy world's base model answers them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from p2o_jax.config import loading
from p2o_jax.rewards.reasoning_gym import answer_in
from p2o_jax.toy_world import pretrain, questions
from p2o_jax.types import Question
from tests import toy_runs

PER_LAYOUT = 12  # of 48 responses at least one is right


def gsm8k(text: str, answer: str) -> dict:
    solution = f"We look.\nSo it is <<1+1=2>>{answer}.\n#### {answer}"
    return {"question": text, "answer": solution}


def math(text: str, answer: str) -> dict:
    solution = rf"We see that it is $\boxed{{{answer}}}$."
    return {"problem": text, "level": "Level 1", "type": "Algebra", "solution": solution}


def verl(text: str, answer: str) -> dict:
    return {
        "data_source": "openai/gsm8k",
        "prompt": [{"content": text, "role": "user"}],
        "ability": "math",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"answer": f"#### {answer}", "index": 0, "question": text, "split": "train"},
    }


def trl(text: str, answer: str) -> dict:
    prompt = [{"role": "user", "content": text}]
    return {"prompt": prompt, "solution": rf"$\boxed{{{answer}}}$"}


def open_r1(text: str, answer: str) -> dict:
    return {
        "problem": text,
        "solution": "We look and see.",
        "answer": answer,
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": "0",
        "is_reasoning_complete": [True],
        "generations": ["<think>We look.</think> We see."],
        "correctness_math_verify": [True],
        "messages": chat(text, answer)["messages"],
    }


def deepscaler(text: str, answer: str) -> dict:
    return {"problem": text, "answer": answer, "solution": "We look and see."}


def chat(text: str, answer: str) -> dict:
    response = rf"It is \boxed{{{answer}}}."
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": response}]
    return {"messages": messages}


LAYOUTS = {
    "gsm8k.jsonl": gsm8k,
    "math.json": math,
    "verl.parquet": verl,
    "trl.parquet": trl,
    "open_r1.parquet": open_r1,
    "deepscaler.json": deepscaler,
    "chat.jsonl": chat,
}


def write(path: Path, rows: list[dict]) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answerable(settings: dict) -> Iterator[Question]:
    """World questions that the base model of the toy runs answers a tenth of the time."""
    world = config_of({**settings, "world.easy_per_family": 400}).world
    return (
        q for q in questions.train_questions(world) if q.text[:7] == "largest" and q.answer == "9"
    )


def config_of(settings: dict):
    return loading.load("configs/smoke.py", [(k, str(v)) for k, v in settings.items()])


@pytest.fixture(scope="module")
def settings(shared):
    """Settings of runs on the toy runs' base model and compiled programs, with other data."""
    toy_runs.finished(shared)
    settings = toy_runs.settings(shared)
    return {
        **settings,
        "model.path": pretrain.base_directory(config_of(settings).world),
        "data.prompt_template": "{question}",
        "train.epochs": 1,
        "train.num_samples_logged": 1000,
        "eval.every_steps": 0,
    }


def samples(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "samples.jsonl").read_text().splitlines()]


def test_every_public_layout_gets_rewards(tmp_path, settings):
    easy = answerable(settings)
    layout_of = {}
    (tmp_path / "raw").mkdir()
    for name, row in LAYOUTS.items():
        chosen = [next(easy) for _ in range(PER_LAYOUT)]
        layout_of |= {q.text: name for q in chosen}
        write(tmp_path / "raw" / name, [row(q.text, q.answer) for q in chosen])
    run = {**settings, "data.path": tmp_path / "raw"}
    output = toy_runs.succeed("configs/smoke.py", tmp_path / "run", run)
    for line in (
        '12 records read in the layout verl: question from "prompt", answer from'
        ' "reward_model.ground_truth"',
        '12 records read in the layout MATH: question from "problem", answer from "solution"',
        '12 records read in the layout open-r1: question from "problem", answer from "answer"',
        '12 records read in the layout DeepScaleR: question from "problem", answer from "answer"',
        '12 records read in the layout TRL: question from "prompt", answer from "solution"',
        '12 records read in the layout chat messages: question from "messages", answer from'
        ' "messages"',
        "48 reference answers are solutions; their final answers are used: 36 in the last"
        r" \boxed{}, 12 after ####",
    ):
        assert line in output
    best: dict[str, float] = {}
    for sample in samples(tmp_path / "run"):
        name = layout_of[sample["question"]]
        best[name] = max(best.get(name, 0), sample["score"])
    assert best == dict.fromkeys(LAYOUTS, 1.0)


def test_reasoning_gym_trains_with_the_library_s_scores(tmp_path, settings):
    library = pytest.importorskip("reasoning_gym", reason="pip install 'p2o-jax[reasoning-gym]'")
    tasks = {
        "chain_sum": {"max_terms": 2, "max_digits": 1},
        "count_bits": {"max_n": 200},
        "spell_backward": {"max_word_len": 4},
    }
    given = "".join(f"&{t}.{name}={n}" for t, values in tasks.items() for name, n in values.items())
    source = f"reasoning_gym:{','.join(tasks)}?size=24&seed=1{given}"
    run = {**settings, "data.path": source}
    toy_runs.succeed("configs/smoke.py", tmp_path / "run", run)
    entries = {}
    for task, values in tasks.items():
        dataset = library.create_dataset(task, size=8, seed=1, **values)
        entries |= {dataset[i]["question"]: (dataset, dataset[i]) for i in range(8)}
    scored = []
    for sample in samples(tmp_path / "run"):
        dataset, entry = entries[sample["question"]]
        answer = answer_in(sample["response"])
        assert sample["answer"] == entry["answer"]
        assert sample["score"] == (0 if answer is None else dataset.score_answer(answer, entry))
        scored.append(sample["score"])
    assert any(0 < score < 1 for score in scored), "no score is graded"
