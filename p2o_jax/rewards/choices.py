r"""Options of multiple choice: `(D) Alina`, `\textbf{(D)}\ 12`, `D`, `D.`, `\text{D: Alina}`."""

import re
from typing import NamedTuple

from p2o_jax.rewards import characters

_FONT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boxed|boldsymbol) ?\{([^{}]*)\}|[$*]"
)
_SPACE = re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\s+")
_OPTION = re.compile(
    r"(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer) )?"
    r"(?:\((?P<round>[A-J])\)|\[(?P<square>[A-J])\]|(?P<bare>[A-J])(?:[).:](?= |$)|$))"
    # An option's text neither continues a formula nor names another option.
    r" ?(?P<text>(?![-+*/^_=<>,.;:!|()\[\]]|and\b|or\b)(?!.*\([A-J]\)).*)\.?",
    re.DOTALL,
)
_LOWER = re.compile(r"\(?([a-j])\)?\.?")


class Option(NamedTuple):
    """The capital letter of an option and its text, which may be empty."""

    letter: str
    text: str


def read(answer: str) -> Option | None:
    """The option that an answer names, or None if it is anything else."""
    match = _OPTION.fullmatch(_plain(answer))
    if not match:
        return None
    return Option(match["round"] or match["square"] or match["bare"], match["text"].strip(" ."))


def letter(answer: str) -> str:
    """The capital letter if an answer is a letter of either case, alone or in brackets, else ""."""
    match = _LOWER.fullmatch(_plain(answer))
    option = read(answer)
    return match.group(1).upper() if match else option.letter if option else ""


def _plain(answer: str) -> str:
    text = _FONT.sub(r"\1", characters.to_latex(answer))
    return _SPACE.sub(" ", text).strip()
