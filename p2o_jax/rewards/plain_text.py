r"""Formulas in plain text, as SymPy or a keyboard writes them, rewritten as LaTeX.

`7*sin(pi*x/5)+1`, `sqrt(3)/2`, `x**(n+1)`, `Rational(1, 2)`, `Matrix([[1, 2], [3, 4]])`. Only text
is rewritten; nothing is evaluated.
"""

import re

# {0} and {1} are the arguments.
_CALLS = {
    "sqrt": r"\sqrt{{{0}}}",
    "cbrt": r"\sqrt[3]{{{0}}}",
    "root": r"\sqrt[{1}]{{{0}}}",
    "abs": "|{0}|",
    "exp": "e^{{{0}}}",
    "factorial": "({0})!",
    "binomial": r"\binom{{{0}}}{{{1}}}",
    "floor": r"\lfloor {0}\rfloor ",
    "ceiling": r"\lceil {0}\rceil ",
    "ceil": r"\lceil {0}\rceil ",
    "Rational": r"\frac{{{0}}}{{{1}}}",
    "Fraction": r"\frac{{{0}}}{{{1}}}",
    "Interval": "[{0},{1}]",
    "Interval.open": "({0},{1})",
    "Interval.Lopen": "({0},{1}]",
    "Interval.Ropen": "[{0},{1})",
    "FiniteSet": r"\{{{all}\}}",
    "Eq": "{0}={1}",
    "Point": "({all})",
}
_CALLS["Abs"] = _CALLS["abs"]
_CALL = re.compile(
    rf"(?<![\\A-Za-z])({'|'.join(map(re.escape, sorted(_CALLS, key=len)[::-1]))}) ?\("
)
_FUNCTIONS = re.compile(
    r"(?<![\\A-Za-z])((?:arc)?(?:sinh|cosh|tanh|sin|cos|tan|cot|sec|csc)|ln|log|gcd|lcm|max|min)"
    r"(?![A-Za-z])"
)
_INVERSE = re.compile(r"(?<![\\A-Za-z])a(?=(?:sin|cos|tan|cot|sec|csc)h?(?![A-Za-z]))")
_NAMES = re.compile(r"(?<![\\A-Za-z])(pi|oo|infinity)(?![A-Za-z])")
_GREEK = re.compile(
    r"(?<![\\A-Za-z])(alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|tau|phi|omega)"
    r"(?![A-Za-z])"
)
_MODULE = re.compile(r"(?<![\\A-Za-z.])(?:np|numpy|math|sympy|sp)\.(?=[A-Za-z])")
_IMAGINARY = re.compile(r"(?<![A-Za-z])I(?![A-Za-z(])")
_LOG = re.compile(r"(?<![\\A-Za-z])log(?![A-Za-z_])")


def has_log(text: str) -> bool:
    """Whether the text has a `log` without a base; in SymPy it is the natural logarithm."""
    return _LOG.search(text) is not None


def to_latex(text: str, natural_log: bool = False) -> str:
    r"""The text with calls, powers and names as LaTeX; LaTeX in it stays as it is.

    Args:
        text: a normalized answer.
        natural_log: whether a bare `log` becomes `\ln`.
    """
    plain = "\\" not in text
    text = _MODULE.sub("", text).replace("**", "^")
    if natural_log:
        text = _LOG.sub("ln", text)
    text = _matrix(_groups(text))
    text = _FUNCTIONS.sub(r"\\\1 ", _INVERSE.sub("arc", text))
    text = _NAMES.sub(lambda m: r"\pi " if m[1] == "pi" else r"\infty ", text)
    if plain:
        text = _GREEK.sub(r"\\\1 ", _IMAGINARY.sub("i", text) if "*" in text else text)
    return text


def _groups(text: str) -> str:
    """Calls of functions, and exponents in brackets, with their arguments."""
    parts, end = [], 0
    while match := re.compile(rf"{_CALL.pattern}|\^\(").search(text, end):
        close = _closing(text, match.end() - 1)
        if not close:
            break
        parts.append(text[end : match.start()])
        arguments = [_groups(a) for a in split(text[match.end() : close])]
        form = _CALLS[match[1]] if match[1] else "^{{{all}}}"
        try:
            parts.append(form.format(*arguments, all=",".join(arguments)))
        except IndexError:
            parts.append(text[match.start() : close + 1])
        end = close + 1
    return "".join(parts) + text[end:]


def _matrix(text: str) -> str:
    inner = re.fullmatch(r"(?:Matrix\()?\[(\[.*\])\]\)?", text, re.DOTALL)
    if not inner:
        return text
    rows = [row[1:-1] for row in split(inner[1]) if row[:1] == "[" and row[-1:] == "]"]
    cells = r"\\".join("&".join(split(row)) for row in rows)
    return rf"\begin{{pmatrix}}{cells}\end{{pmatrix}}"


def split(text: str, separator: str = ",") -> list[str]:
    """The parts between separators that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _closing(text: str, start: int) -> int:
    """Where the bracket at `start` is closed; 0 if it is not."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return 0
