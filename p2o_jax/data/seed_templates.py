"""Templates that a user gives (`config.gepa.seed_templates`).

templates.txt     one a paragraph; blank lines separate them; also .md
templates.jsonl   one a line, {"template": "..."}, for templates with blank lines in them
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from p2o_jax.data import sources, tables
from p2o_jax.types import digest

FIELD = "template"
PARAGRAPHS = (".txt", ".md")


class Seed(NamedTuple):
    """A template, and where it stands: FILE:LINE."""

    where: str
    text: str


def read(path: str) -> tuple[Seed, ...]:
    """Returns the templates of a file, in order; none for an empty path.

    Raises:
        config.ConfigError: with a line for each problem, as FILE:LINE: rule.
    """
    if not path:
        return ()
    seeds: list[Seed] = []
    problems: list[str] = []
    lines: dict[str, int] = {}  # by text without differences in white space
    for line, text, problem in _entries(Path(path)):
        where = f"{path}:{line}" if line else path
        first = line if problem else lines.setdefault(" ".join(text.split()), line)
        if first != line:
            problem = f"repeats the template of line {first}"
        if problem:
            problems.append(f"{where}: {problem}")
        seeds.append(Seed(where, text))
    sources.raise_problems(problems or ([] if seeds else [f"{path}: no templates in it"]))
    return tuple(seeds)


def digest_of(path: str) -> str:
    """Returns a digest of the file's contents; empty if it cannot be read."""
    try:
        return digest(Path(path).read_bytes().hex())
    except OSError:
        return ""


def _entries(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, text, problem) of each template; line 0 is the whole file."""
    if not path.is_file():
        yield 0, "", "no such file (config.gepa.seed_templates)"
    elif path.suffix not in (".jsonl", "", *PARAGRAPHS):
        yield 0, "", f"suffix must be .jsonl or one of {', '.join(PARAGRAPHS)}"
    else:
        try:
            yield from _lines(path) if path.suffix == ".jsonl" else _paragraphs(path)
        except OSError as e:
            yield 0, "", f"cannot be read: {e.strerror or e}"


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    for line, record in tables.read_jsonl(path):
        if isinstance(record, str):
            yield line, "", record
            continue
        text = record.get(FIELD)
        text = text.strip() if isinstance(text, str) else ""
        yield line, text, "" if text else f"`{FIELD}` must be a text, and not blank"


def _paragraphs(path: Path) -> Iterator[tuple[int, str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        yield 0, "", "not UTF-8"
        return
    begin = 0
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            begin = begin or number
        elif begin:
            yield begin, "\n".join(lines[begin - 1 : number - 1]).strip(), ""
            begin = 0
