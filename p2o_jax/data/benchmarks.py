"""Math benchmarks, and named evaluation sets.

A benchmark is read from the Hugging Face hub, or from any source that `sources` accepts. A local
source has either the hub's columns or the columns `question` and `answer`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from p2o_jax import config
from p2o_jax.data import sources
from p2o_jax.data.sources import Loaded, Record

QUESTIONS = ("problem", "question", "Problem", "Question")
ANSWERS = ("answer", "final_answer", "Answer", "expected_answer")
# The paper's protocol: sets of fewer questions are sampled k times, larger sets decoded greedily.
SMALL = 100
_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def reference(value: Any) -> Any:
    """The reference answer in a column.

    A list is joined with commas, because OlympiadBench asks for all of its entries. Other values
    are returned unchanged.
    """
    return (
        ", ".join(map(str, value))
        if isinstance(value, Sequence) and not isinstance(value, str)
        else value
    )


def after_hashes(value: Any) -> Any:
    """GSM8K's answer: the text after the last ####, without thousands separators."""
    return value.rpartition("####")[2].strip().replace(",", "") if isinstance(value, str) else value


@dataclass(frozen=True)
class Benchmark:
    """The source of a benchmark and the way its answers are read.

    Questions and answers come from the first column of `QUESTIONS` and of `ANSWERS` that exists.
    """

    name: str
    title: str
    source: str
    size: int
    answer: Callable[[Any], Any] = reference
    about: str = ""

    def convert(self, record: Record) -> Record | str:
        """The record with the columns `question` and `answer`, or the reason why it has neither."""
        question = next((name for name in QUESTIONS if name in record), None)
        answer = next((name for name in ANSWERS if name in record), None)
        if question is None or answer is None:
            wanted = " or ".join(QUESTIONS if question is None else ANSWERS)
            return f"no column {wanted}; it has {', '.join(map(str, record)) or 'none'}"
        rest = {k: v for k, v in record.items() if k not in (question, answer)}
        return {**rest, "question": record[question], "answer": self.answer(record[answer])}

    def load(self, cfg: config.DataConfig, source: str = "") -> Loaded:
        """Loads the benchmark's questions with `cfg.prompt_template`.

        Reads from `source` if given, else from the hub.

        Raises:
            config.ConfigError: as `sources.load`.
        """
        fields = replace(cfg, question_field="question", answer_field="answer")
        return replace(sources.load(source or self.source, fields, self.convert), name=self.name)


BENCHMARKS: Mapping[str, Benchmark] = {
    b.name: b
    for b in (
        Benchmark("aime24", "AIME 2024", "hf:HuggingFaceH4/aime_2024@train", 30),
        Benchmark("aime25", "AIME 2025", "hf:yentinglin/aime_2025@train", 30),
        Benchmark(
            "amc23",
            "AMC 2023, 40 questions",
            "hf:math-ai/amc23@test",
            40,
            about="as in the Qwen2.5-Math suite",
        ),
        Benchmark(
            "amc23_83",
            "AMC 2022 and 2023, 83 questions",
            "hf:AI-MO/aimo-validation-amc@train",
            83,
            about="as in Dr. GRPO",
        ),
        Benchmark("math500", "MATH-500", "hf:HuggingFaceH4/MATH-500@test", 500),
        Benchmark("minerva", "Minerva Math", "hf:math-ai/minervamath@test", 272),
        Benchmark(
            "olympiadbench",
            "OlympiadBench",
            "hf:Hothan/OlympiadBench:OE_TO_maths_en_COMP@train",
            674,
            about="open-ended, English",
        ),
        Benchmark("gsm8k", "GSM8K", "hf:openai/gsm8k:main@test", 1319, after_hashes),
    )
}


def named(text: str) -> list[tuple[str, str]]:
    """Parses a list of evaluation sets such as `NAME=SOURCE,BENCHMARK,SOURCE`.

    Returns pairs of name and source. The source of a plain benchmark name is empty, and a plain
    source is named after its path.

    Raises:
        config.ConfigError: an entry is empty, a name is repeated, or a name is not valid.
    """
    sets: list[tuple[str, str]] = []
    problems: list[str] = []
    for entry in text.split(","):
        name, equals, source = (part.strip() for part in entry.strip().partition("="))
        if not equals:
            name, source = (name, "") if name in BENCHMARKS else (_name_of(name), name)
        if not _SET_NAME.fullmatch(name) or (not source and name not in BENCHMARKS):
            rule = (
                f"expected a benchmark ({', '.join(BENCHMARKS)}), a source, or NAME=SOURCE with a"
                " name of letters, digits, - and _"
            )
            problems.append(f"{entry.strip() or repr(text)}: {rule}")
        elif name in dict(sets):
            problems.append(f"{entry.strip()}: a second set named {name}")
        sets.append((name, source))
    if problems:
        raise config.ConfigError(*problems)
    return sets


def load_set(name: str, source: str, cfg: config.DataConfig) -> Loaded:
    """Loads a benchmark, from the hub if `source` is empty, or another source with `cfg`'s columns.

    Raises:
        config.ConfigError: as `sources.load`.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name].load(cfg, source)
    return replace(sources.load(source, cfg), name=name)


def load_sets(
    text: str, cfg: config.DataConfig, where: str = "config.data.eval_path"
) -> list[Loaded]:
    """Loads every set in a list such as config.data.eval_path.

    `where` is the name of the setting or flag that holds the list, for error messages.

    Raises:
        config.ConfigError: one line for every problem of every set.
    """
    sets: list[Loaded] = []
    problems: list[str] = []
    try:
        entries = named(text)
    except config.ConfigError as e:
        raise config.ConfigError(*(f"{where}: {line}" for line in e.problems)) from e
    for name, source in entries:
        try:
            sets.append(load_set(name, source, cfg))
        except config.ConfigError as e:
            problems += e.problems
    if problems:
        raise config.ConfigError(*problems)
    return sets


def _name_of(source: str) -> str:
    """The name of a set: its file or data set, without folder, suffix and split."""
    path = re.sub(r"^(hf|tfds):", "", source).partition("@")[0].rstrip("/")
    return re.sub(r"\.(jsonl|json|csv|parquet)$", "", re.split(r"[/\\]", path)[-1]).partition(":")[
        0
    ]
