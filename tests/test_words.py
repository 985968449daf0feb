"""Plain English in code, comments, messages and documentation: a list of words to avoid."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AVOIDED = {  # pattern: better words
    r"(?<!\.)\btell(s|ing)?\b|\btold\b": "say, report, log, name, show, distinguish",
    r"\breckon\w*": "compute, estimate, count",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\bso many\b(?! that\b)": "a number of, this many, N",
    r"\bsuch (a one|ones)\b": "one, it, them",
    r"\bgoes on\b(?! to\b)": "continues",
    r"\blet(s|ting)? go of\b": "free, release, drop",
    r"\bset(s|ting)? aside\b": "ignore, reserve, exclude, move",
    r"\bwho(so)?ever\b": "any process that, anyone who",
    r"\b(is|are) there to be\b": "must exist, exists to be",
    r"\b(make|makes|made) (it |them )?again\b": "repeat, rebuild, rerun",
    r"\bthe house\b|(?<![-\w])rooms?\b(?! (for|to)\b)": "repository layout, package, space",
}
IDENTIFIERS = {"found", "how", "made", "tell", "told"}
# Texts that are data: the toy world's vocabulary depends on its phrases.
ALLOWED = ("advance along the circle as told",)
SKIPPED = ("CHANGELOG.md", "tests/test_words.py", "tests/golden/")


def avoided(text: str, is_code: bool) -> list[str]:
    """A line for each avoided word or identifier of a file: its line number and the hit."""
    for phrase in ALLOWED:
        text = text.replace(phrase, "")
    hits = [
        (text.count("\n", 0, m.start()) + 1, f"{' '.join(m.group().split())!r}: {better}")
        for pattern, better in AVOIDED.items()
        for m in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE)
    ]
    for node in ast.walk(ast.parse(text)) if is_code else ():
        names = [getattr(node, field, None) for field in ("id", "arg", "name", "attr")]
        hits += [
            (node.lineno, f"identifier {name}")
            for name in names
            if str(name).strip("_") in IDENTIFIERS
            and not isinstance(getattr(node, "ctx", None), ast.Load)
        ]
    return [f"{line}: {hit}" for line, hit in sorted(set(hits))]


def test_avoided_words_are_not_used():
    kinds = ("*.py", "*.md", "*.js", "*.html")
    files = subprocess.check_output(["git", "ls-files", *kinds], cwd=ROOT, text=True)
    checked = [f for f in files.split() if not f.startswith(SKIPPED)]
    assert len(checked) > 100
    hits = [
        f"{file}:{hit}"
        for file in checked
        for hit in avoided((ROOT / file).read_text(encoding="utf-8"), file.endswith(".py"))
    ]
    assert not hits, "\n" + "\n".join(hits)


@pytest.mark.parametrize(
    "text",
    [
        '"""All problems are told at once."""',
        "x = 'the log tells it'",
        "# so many tokens",
        '"""as so\n    many tokens"""',
        '"""The last is let go of before another is made."""',
        '"""the run goes on from there"""',
        '"""compiled and reckoned"""',
        '"""settings that would mend it"""',
        '"""to whoever listens"""',
        '"""modules and rooms"""',
        "found = 1",
        "def f(how): ...",
        "def _tell(line): ...",
        "self.made = 2",
    ],
)
def test_planted_words_are_detected(text):
    assert avoided(text, True)


@pytest.mark.parametrize(
    "text",
    [
        '"""How many are found in the file; recommended, amended and foretold."""',
        "position = file.tell()",
        '"""There is room for one, and goes on to say so many that it overflows."""',
        "x = how_many(found_in, made_of)",
    ],
)
def test_harmless_words_are_not(text):
    assert avoided(text, True) == []
