"""Math benchmarks, and named evaluation sets.

A benchmark is read from the Hugging Face hub, or from any source that `sources` accepts. A local
source has either the hub's columns or the columns `question` and `answer`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from p2o_jax import config
from p2o_jax.data import sources
from p2o_jax.data.layouts import MissingColumn
from p2o_jax.data.sources import Loaded, Record
from p2o_jax.rewards import reasoning_gym

QUESTIONS = ("problem", "question", "Problem", "Question")
ANSWERS = ("answer", "final_answer", "Answer", "expected_answer")
# The paper's protocol: sets of fewer questions are sampled k times, larger sets decoded greedily.
SMALL = 100
BuiltIn = Mapping[str, Callable[[], Loaded]]  # sources by name
_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Benchmark:
    """The source of a benchmark.

    Questions and answers come from the first column of `QUESTIONS` and of `ANSWERS` that exists.
    """

    name: str
    title: str
    source: str
    size: int
    about: str = ""

    def convert(self, record: Record) -> Record | str:
        """The record with the columns `question` and `answer`, or the reason why it has neither."""
        question = next((name for name in QUESTIONS if name in record), None)
        answer = next((name for name in ANSWERS if name in record), None)
        if question is None or answer is None:
            wanted = " or ".join(QUESTIONS if question is None else ANSWERS)
            columns = ", ".join(map(str, record)) or "none"
            return MissingColumn(f"no column {wanted}; it has {columns}")
        rest = {k: v for k, v in record.items() if k not in (question, answer)}
        return {**rest, "question": record[question], "answer": record[answer]}

    def load(self, cfg: config.DataConfig, source: str = "") -> Loaded:
        """Loads the benchmark's questions with `cfg.prompt_template`.

        Reads from `source` if given, else from the hub.

        Raises:
            config.ConfigError: as `sources.load`.
        """
        fields = replace(cfg, question_field="question", answer_field="answer", answers="final")
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
        Benchmark("gsm8k", "GSM8K", "hf:openai/gsm8k:main@test", 1319),
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
    for entry in _entries(text):
        name, equals, source = (part.strip() for part in entry.strip().partition("="))
        if not equals or entry.strip().startswith(f"{reasoning_gym.NAME}:"):
            name = entry.strip()
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


def load_set(
    name: str, source: str, cfg: config.DataConfig, built_in: BuiltIn = MappingProxyType({})
) -> Loaded:
    """Loads a benchmark, from the hub if `source` is empty, or another source with `cfg`'s columns.

    Raises:
        config.ConfigError: as `sources.load`.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name].load(cfg, source)
    if source in built_in:
        return replace(built_in[source](), name=name)
    return replace(sources.load(source, cfg), name=name)


def load_sets(
    text: str,
    cfg: config.DataConfig,
    where: str = "config.data.eval_path",
    built_in: BuiltIn = MappingProxyType({}),
) -> list[Loaded]:
    """Loads every set in a list such as config.data.eval_path.

    Args:
        text: the list.
        cfg: the columns of sources.
        where: the name of the setting or flag that holds the list, for error messages.
        built_in: further sources by name.

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
            sets.append(load_set(name, source, cfg, built_in))
        except config.ConfigError as e:
            problems += e.problems
    if problems:
        raise config.ConfigError(*problems)
    return sets


def _entries(text: str) -> Iterator[str]:
    """The entries of a list of evaluation sets.

    The tasks of reasoning-gym are separated by commas, too: a source of that library ends with the
    entry that holds its `?`, or before a benchmark or anything that is no bare name.
    """
    tasks = ""
    for entry in text.split(","):
        is_task = re.fullmatch(r"\s*\w+\s*(\?.*)?", entry) and entry.strip() not in BENCHMARKS
        if tasks and is_task and "?" not in tasks:
            tasks += f",{entry}"
            continue
        if tasks:
            yield tasks
        is_gym = re.match(rf"\s*([^=:?]*=)?\s*{reasoning_gym.NAME}:", entry)
        tasks = entry if is_gym else ""
        if not is_gym:
            yield entry
    if tasks:
        yield tasks


def _name_of(source: str) -> str:
    """The name of a set: its file or data set, without folder, suffix and split."""
    kind, _, tasks = source.partition(":")
    if kind == reasoning_gym.NAME:
        return "-".join(tasks.partition("?")[0].split(","))
    path = re.sub(r"^(hf|tfds):", "", source).partition("@")[0].rstrip("/")
    return re.sub(r"\.(jsonl|json|csv|parquet)$", "", re.split(r"[/\\]", path)[-1]).partition(":")[
        0
    ]
