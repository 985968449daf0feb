"""The benchmarks that the paper and its peers report, and several evaluation sets by name.

A benchmark is read from the hub, or from any local source of `sources` with the hub's columns or
with `question` and `answer`.
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
# sets under so many questions are sampled k times, larger ones decoded greedily (the paper's
# protocol)
SMALL = 100
_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def reference(value: Any) -> Any:
    """The answer in a column: a list's entries side by side (OlympiadBench: all must be given),
    else the value as it is.
    """
    return (
        ", ".join(map(str, value))
        if isinstance(value, Sequence) and not isinstance(value, str)
        else value
    )


def after_hashes(value: Any) -> Any:
    """GSM8K's answer: what stands after the last ####, without thousands separators."""
    return value.rpartition("####")[2].strip().replace(",", "") if isinstance(value, str) else value


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's questions are, and how its columns are read: the first that is there."""

    name: str
    title: str
    source: str
    size: int
    answer: Callable[[Any], Any] = reference
    about: str = ""

    def convert(self, record: Record) -> Record | str:
        """The record with the columns `question` and `answer`."""
        question = next((name for name in QUESTIONS if name in record), None)
        answer = next((name for name in ANSWERS if name in record), None)
        if question is None or answer is None:
            wanted = " or ".join(QUESTIONS if question is None else ANSWERS)
            return f"no column {wanted}; it has {', '.join(map(str, record)) or 'none'}"
        rest = {k: v for k, v in record.items() if k not in (question, answer)}
        return {**rest, "question": record[question], "answer": self.answer(record[answer])}

    def load(self, cfg: config.DataConfig, source: str = "") -> Loaded:
        """The benchmark's questions in `cfg.prompt_template`, from the hub unless another source is
        given.

        Raises:
            config.ConfigError: as `sources.load`.
        """
        own = replace(cfg, question_field="question", answer_field="answer")
        return replace(sources.load(source or self.source, own, self.convert), name=self.name)


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
    """(name, source) of `NAME=SOURCE,NAME,SOURCE`: a benchmark may stand alone, another source
    takes its name from its path.

    Raises:
        config.ConfigError: an empty entry, a name twice, or one that is none.
    """
    found: list[tuple[str, str]] = []
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
        elif name in dict(found):
            problems.append(f"{entry.strip()}: a second set of the name {name}")
        found.append((name, source))
    if problems:
        raise config.ConfigError(*problems)
    return found


def load_set(name: str, source: str, cfg: config.DataConfig) -> Loaded:
    """The questions of a benchmark (from the hub where `source` is empty), or of a source of
    one's own with the columns of `cfg`.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name].load(cfg, source)
    return replace(sources.load(source, cfg), name=name)


def load_sets(
    text: str, cfg: config.DataConfig, where: str = "config.data.eval_path"
) -> list[Loaded]:
    """The sets of a text like config.data.eval_path, or like what else `where` names.

    Raises:
        config.ConfigError: with a line for everything wrong with any of them.
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
    """The name of a source's set: the file's or data set's, without folder, suffix and split."""
    path = re.sub(r"^(hf|tfds):", "", source).partition("@")[0].rstrip("/")
    return re.sub(r"\.(jsonl|json|csv|parquet)$", "", re.split(r"[/\\]", path)[-1]).partition(":")[
        0
    ]
