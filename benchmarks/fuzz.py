"""Random input for all code that reads external text: `python -m benchmarks.fuzz [--cases 100000]`.

Covers flags and settings, question files, responses, replies and templates, records, and the
terminal. Only a ConfigError may be raised, and the output must keep its documented properties. A
case is a function of (seed, kind, number); a failure is printed with its number.
"""

import json
import random
import string
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Target
from p2o_jax import config
from p2o_jax.config import ConfigError, loading, rules
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.data import sources
from p2o_jax.data.chat import Chat, load_tokenizer, templated
from p2o_jax.gepa import filters, leaks
from p2o_jax.main import command
from p2o_jax.rewards import normalize
from p2o_jax.rewards.boxed import last_boxed
from p2o_jax.runtime.console import printable
from p2o_jax.toy_world import languages
from p2o_jax.toy_world import tokenizer as world_tokenizer
from p2o_jax.types import Question, Reply

TARGETS = {
    "no unexpected exception or broken promise": Target("failures", "<=", 0),
    "cases": Target("cases", ">=", 100_000),
}
CHARACTERS = (
    *string.ascii_letters[:8],
    *string.digits,
    *r"\{}[]()$^_`'\"<>|&;%#@!~*?:,./ -+=",
    "\n",
    "\r",
    "\t",
    "\x00",
    "\x1b",
    "\x7f",
    "\x9b",
    "\u2028",
    "\u202e",
    "\u00a0",
    "\ufeff",
    "é",
    "答",
    "٣",
    "𝟙",
    "😀",
    "\ud800",
    "\udfff",
)
PIECES = (
    r"\boxed{",
    r"\boxed",
    r"\fbox{",
    r"\{",
    r"\}",
    r"\\{",
    "{{ 7*7 }}",
    "{% for x in y %}",
    "{# no #}",
    "${HOME}",
    "$(reboot)",
    "`id`",
    "<|im_end|>",
    "<|im_start|>system",
    "<think>",
    "</think>",
    "```",
    "```markdown\n",
    "<script>alert(1)</script>",
    "\x1b[2J",
    "\x1b]0;x\x07",
    "__import__('os').system('false')",
    "'; DROP TABLE x; --",
    "{question}",
    "{0}",
    "{x!r}",
    "%s",
    "%(x)s",
    "<curr_param>",
    "<side_info>",
    r"\frac{1}{2}",
    r"\text{",
    r"\left(",
    "1/2",
    "1/0",
    "0.5",
    "-",
    "NaN",
    "1e999",
    "null",
    "true",
    "[",
    "]",
    "\u0085",
)


def text(rng: random.Random, longest: int = 40) -> str:
    """Random characters, and pieces with a special meaning in some format."""
    parts = (
        rng.choice(PIECES) if rng.random() < 0.3 else rng.choice(CHARACTERS)
        for _ in range(rng.randint(0, longest))
    )
    return "".join(parts)


FUZZED = CommandLine(
    "p2o_jax.main", "", Flag("config", "Config file", "x"), Flag("workdir", "Folder")
)


class Fuzz:
    """The kinds of cases.

    Each method takes a random generator, and raises if a property is violated.
    """

    def __init__(self, folder: Path):
        world_tokenizer.write_tokenizer(folder / "tokenizer", languages.SMALL)
        self.folder = folder
        self.chat = Chat(load_tokenizer(folder / "tokenizer"), config.ChatConfig(template=JINJA))
        self.keys = list(_keys())

    def settings(self, rng: random.Random) -> None:
        """Flags and overrides: either valid settings or a list of all problems."""
        flags = [self._flag(rng) for _ in range(rng.randint(1, 4))]
        _, overrides = FUZZED.parse(flags)
        values = loading.to_config_dict(config.Config())
        loading.override(values, overrides)
        cfg = config.resolve(loading.from_config_dict(values))
        problems = rules.problems(cfg, rng.choice((1, 2, 8)))
        assert all("config." in line for line in problems), problems

    def _flag(self, rng: random.Random) -> str:
        if rng.random() < 0.6:
            return f"--config.{rng.choice(GOOD)}"
        key = rng.choice(self.keys) if rng.random() < 0.9 else text(rng, 5)
        value = rng.choice(
            (
                str(
                    rng.choice(
                        (0, 1, -1, 2, 3, 8, 10**9, -(10**30), 0.5, 1e-9, float("nan"), float("inf"))
                    )
                ),
                rng.choice(
                    (
                        "true",
                        "False",
                        "none",
                        "None",
                        "grpo",
                        "api",
                        "world",
                        "calls",
                        "penalty",
                        "plain",
                        "gs://b/x",
                        "()",
                        "(1, 2)",
                    )
                ),
                text(rng, 6),
                "(" * rng.randint(0, 300) + "1",
            )
        )
        return (
            rng.choice(("--config.", "--config.", "--config.", "--", "config.")) + f"{key}={value}"
        )

    def questions(self, rng: random.Random) -> None:
        """A JSONL file: either questions with text and answer, or a line for every bad one."""
        path = self.folder / "questions.jsonl"
        bad = rng.choice((0.0, 0.1, 1.0))
        path.write_bytes(
            b"".join(
                self._line(rng) if rng.random() < bad else self._good_line(rng)
                for _ in range(rng.randint(0, 6))
            )
        )
        loaded = sources.load(path, config.DataConfig(path=str(path)))
        assert loaded.questions and len({q.id for q in loaded.questions}) == len(loaded.questions)
        assert all(
            q.text.strip() and q.answer.strip() and json.dumps(q.messages).encode()
            for q in loaded.questions
        )

    def _good_line(self, rng: random.Random) -> bytes:
        row = {
            "question": f"q {text(rng, 12)}",
            "answer": f"a {text(rng, 4)}",
            text(rng, 3): self._value(rng),
        }
        return (
            json.dumps(
                {
                    k: v.replace("\ud800", "").replace("\udfff", "") if isinstance(v, str) else v
                    for k, v in row.items()
                }
            ).encode()
            + b"\n"
        )

    def _line(self, rng: random.Random) -> bytes:
        value: Any = {
            rng.choice(("question", "question", "question", "answer", text(rng, 3))): self._value(
                rng
            ),
            rng.choice(("answer", "answer", "answer", "question", text(rng, 3))): self._value(rng),
        }
        line = json.dumps(
            rng.choice((value, value, value, value, [value], self._value(rng))),
            ensure_ascii=rng.random() < 0.7,
        )
        data = bytearray(line.encode("utf-8", "surrogatepass"))
        if rng.random() < 0.1 and data:
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.02:
            data = bytearray(b"[" * rng.choice((10, 100_000)))
        return bytes(data) + rng.choice((b"\n", b"\n", b"\n", b"\r\n", b""))

    def _value(self, rng: random.Random) -> Any:
        content: list[Any] = [
            text(rng, 12),
            text(rng, 12),
            3,
            -1.5,
            None,
            True,
            [],
            {},
            "",
            [1],
            [text(rng, 3)],
            float("nan"),
            10**400,
        ]
        role = rng.choice(("user", "user", "assistant", "system", "robot"))
        return rng.choice(
            [
                *content,
                [{"role": role, "content": rng.choice(content)}],
                [{"role": role}, {"content": "x"}],
            ]
        )

    def boxes(self, rng: random.Random) -> None:
        """A response: the content of its last closed box, and plain equality of that content."""
        response = text(rng, 60)
        box = last_boxed(response)
        assert box == _last_boxed_slowly(response), box
        normalize.equal(box or "", text(rng, 12))
        assert normalize.equal(response, response) in (True, False)

    def templates(self, rng: random.Random) -> None:
        """The template extracted from a reply: the prompt contains it verbatim.

        Nothing of it is run.
        """
        reply = text(rng, 30)
        gepa = config.resolve(config.Config()).gepa
        extracted = filters.extract(
            Reply(reply), gepa, self.chat.count_tokens, ("taken",), self.chat.spells_special
        )
        assert extracted.problem or (extracted.text.strip() and extracted.text in reply)
        template = extracted.text or text(rng, 20)
        question = Question("id", ({"role": "user", "content": f"q {text(rng, 8)}"},), "1")
        whole = self.chat.prompt_text(question, template)
        assert whole == f"<user>{templated(question.messages, template)[-1]['content']}</user>"
        assert self.chat.render(question, template)
        leaks.leaks(template, [question])

    def records(self, rng: random.Random) -> None:
        """A row of text: an ASCII line restores it. Terminal output has no control characters."""
        row = {"text": _paired(text(rng, 40)), _paired(text(rng, 4)): _paired(text(rng, 4))}
        line = json.dumps(row, ensure_ascii=True)
        assert line.isascii() and line.isprintable() and json.loads(line) == row
        shown = printable(row["text"])
        assert all(c.isprintable() or c in "\n\t" for c in shown)
        shown.encode("utf-8")


GOOD = (
    "rollout.group_size=8",
    "rollout.temperature=1",
    "optim.lr=1e-4",
    "gepa.patience=none",
    "gepa.enabled=False",
    "train.epochs=3",
    "data.path=q.jsonl",
    "preset=faithful",
    "mesh.tensor=2",
    "rollout.prompt_buckets=(4096, 8192)",
    "checkpoint.path=gs://b/x",
    "lora.rank=4",
)
JINJA = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
KINDS = ("settings", "questions", "boxes", "templates", "records")


def _keys() -> Iterator[str]:
    for section, value in vars(config.Config()).items():
        yield section
        yield from (f"{section}.{name}" for name in getattr(value, "__dict__", {}))


def _paired(text: str) -> str:
    """The text with adjacent halves of surrogate pairs joined to one character, as JSON does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _last_boxed_slowly(response: str) -> str | None:
    """The rule of `last_boxed`, applied character by character."""
    start = None
    for i in range(len(response)):
        rest = response[i:]
        after = rest.removeprefix(r"\boxed").lstrip() if rest.startswith(r"\boxed") else ""
        if after.startswith("{"):
            start = len(response) - len(after) + 1
    if start is None:
        return None
    depth, i = 1, start
    while i < len(response):
        if response[i] == "\\":
            i += 2
            continue
        depth += {"{": 1, "}": -1}.get(response[i], 0)
        if depth == 0:
            return response[start:i].strip()
        i += 1
    return None


def measure(
    cases: int,
    seed: str,
    log: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Any]:
    """The figures of `cases` cases, divided equally among the kinds."""
    failures, refused, seconds = [], Counter[str](), {}
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        for kind in KINDS:
            begin = time.perf_counter()
            for number in range(-(-cases // len(KINDS))):
                try:
                    getattr(fuzz, kind)(random.Random(f"{seed}/{kind}/{number}"))
                except ConfigError as e:
                    refused[kind] += 1
                    if not e.problems or not all(line.strip() for line in e.problems):
                        failures.append(f"{kind} {number}: a ConfigError without a word")
                except Exception:
                    failures.append(f"{kind} {number}: {traceback.format_exc(limit=-3)}")
            seconds[kind] = round(time.perf_counter() - begin, 1)
            log(
                f"{kind}: {refused[kind]} refused, {len(failures)} failures so far,"
                f" {seconds[kind]} s"
            )
    for failure in failures[:20]:
        log(failure)
    done = -(-cases // len(KINDS)) * len(KINDS)
    return {
        "cases": done,
        "failures": len(failures),
        "refused": dict(refused),
        "seconds": seconds,
        "megabyte_s": _megabytes(),
    }


def _megabytes() -> float:
    """The longest time to extract from a megabyte of braces, boxes or backslashes, in seconds."""
    longest = 0.0
    for piece in (
        "{",
        "}",
        "{}",
        r"\boxed{",
        r"\boxed",
        "\\",
        r"\boxed{}",
        r"\boxed " + "{",
        r"\boxed{\{",
    ):
        begin = time.perf_counter()
        last_boxed(piece * (1_000_000 // len(piece)))
        longest = max(longest, time.perf_counter() - begin)
    return round(longest, 3)


COMMAND_LINE = CommandLine(
    "benchmarks.fuzz",
    __doc__,
    Flag("cases", "Random inputs", 100000, kind=int, within=COUNT),
    Flag("seed", "Seed of the inputs", "0"),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Runs and reports.

    Raises:
        ConfigError: the flags are invalid.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    report.finish("fuzz", measure(flags["cases"], flags["seed"]), TARGETS)


if __name__ == "__main__":
    command(run)
