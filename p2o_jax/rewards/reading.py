r"""Reads answers as SymPy objects, with the LaTeX parser of math-verify.

The parser alone reads 4.5e33 with Euler's number, 2(3) as a mixed number, drops the base of 2516_8
and the prime of f', and takes X and x for one variable. Runs in worker processes only, because it
may hang or crash. Nothing is evaluated as Python: SymPy's `parse_expr` is never called.
"""

import functools
import re
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex

from p2o_jax.rewards import numbers, plain_text

Read = sympy.Basic | sympy.MatrixBase

_SPELLING = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
_CASE_MATTERS = ConversionConfig(lowercase_symbols=False)
_E_NOTATION = re.compile(
    r"(?<![A-Za-z0-9_.}])(?P<mantissa>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    r"[eE](?P<exponent>[+-]?[0-9]{1,9})"
    r"(?![0-9.A-Za-z])"
)
_MIXED = re.compile(
    r"(?<![0-9.^_}A-Za-z])(?P<whole>[0-9]+)(?: (?P<top>[0-9]+)/(?P<bottom>[0-9]+)(?![0-9.])"
    r"| ?\\frac\{(?P<above>[0-9]+)\}\{(?P<below>[0-9]+)\})"
)
_SIGNED_POWER = re.compile(r"\^(-(?:[0-9]+(?:\.[0-9]+)?|[A-Za-z]))")
_ODD_ROOT = re.compile(r"\\sqrt\[([13579])\]\{-([0-9.]+|[A-Za-z])\}")  # real, as it is meant
# To the parser a gamma is a number or a function, and its exponent is lost.
_GAMMA = re.compile(r"\\(gamma|Gamma(?! ?[({]))(?![A-Za-z])")
_LOST_EXPONENT = re.compile(r"\^(?:T|\{ ?T ?\})(?![A-Za-z])")  # a power, or transposed
_REPEATING = re.compile(r"[0-9]*\.[0-9]*\\(?:overline|bar) ?\{[0-9]+\}")
_LINE_BREAK = re.compile(r"\\\\ ?(?=[A-Za-z](?![A-Za-z]))")
_NAMED_INDEX = re.compile(r"_\{ ?\\(max|min|sup|lim|log|ln) ?\}")  # x_{\max} is a variable
_PRIMES = re.compile(r"(?<=[A-Za-z])'+|\^\{?(?:\\prime ?)+\}?")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_ARRAY = re.compile(
    r"[\[(|]?\\begin\{(?:array|matrix|smallmatrix)\}(?:\{[lcr|]*\})?(.*?)"
    r"\\end\{(?:array|matrix|smallmatrix)\}[\])|]?",
    re.DOTALL,
)
_SET_BUILDER = re.compile(r"\\\{ ?[A-Za-z] ?(?:\||\\mid|\\vert|:) ?(.*)\\\}")
_GROUP = re.compile(r"\\[A-Za-z]+(?: ?\{[A-Za-z ,.]*\})?")
_WORD = re.compile(r"[A-Za-z]{4,}")
_TWO_WORDS = re.compile(r"[A-Za-z]{3,} [A-Za-z]{2,}|[A-Za-z]{2,} [A-Za-z]{3,}")
# Double factorials, sequences, minutes and feet: n!! is not (n!)!, and 5'10'' is not 510.
_MISREAD = re.compile(r"!!|\\(?:[lc]?dots|vdots)(?![A-Za-z])|\.\.|[0-9] ?'|\\circ ?\}? ?[0-9]")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_INDEX_I = re.compile(r"(?<![A-Za-z\\])i ?=")
_EULER = re.compile(r"(?<![A-Za-z\\])e(?![A-Za-z])")
_WORDS = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
_BASES = {word: str(n) for n, word in enumerate([*_WORDS.split(), "sixteen"], start=2)}
_BASE = re.compile(
    r"(?:\((?P<grouped>[0-9.]+)\)|(?P<digits>(?<![A-Za-z0-9_.^])[0-9]+(?:\.[0-9]+)?))"
    rf"_\{{?(?:\\(?:text|mathrm) ?\{{)?(?:base ?)?(?P<base>[0-9]+|{'|'.join(_BASES)})\}}*"
)


def euler(text: str) -> bool:
    """Whether a normalized answer has Euler's number, in anything but E-notation."""
    return _EULER.search(_E_NOTATION.sub("", text)) is not None


@functools.lru_cache(maxsize=1024)
def read(text: str, euler: bool = False, natural_log: bool = False) -> Read | None:
    """What a normalized answer means, unevaluated; None if it cannot be read.

    Args:
        text: the answer, without unit.
        euler: 2e-5 has Euler's number, and is not E-notation.
        natural_log: a plain-text `log` is the natural logarithm.
    """
    try:
        latex = _to_latex(plain_text.to_latex(text, natural_log), euler)
        if _is_prose(latex) or _MISREAD.search(latex):
            return None
        if builder := _SET_BUILDER.fullmatch(latex):
            relation = read(builder[1], euler, natural_log)
            return relation.as_set() if isinstance(relation, sympy.logic.boolalg.Boolean) else None
        result = _parsed(_LatexReader(text), normalize_latex(latex, _SPELLING))
    except Exception:  # the edge: an unreadable answer may raise anything
        return None
    return result if isinstance(result, sympy.Basic | sympy.MatrixBase) else None


def _parsed(reader: "_LatexReader", latex: str) -> Any:
    """What the text says; of a chain with a side that cannot be read, its last value."""
    try:
        return reader.parse(latex)
    except Exception:  # the edge: the parser raises Exception itself
        chain = re.split(r"(?<![\\<>!])=", latex)
        if len(chain) < 3 or re.search(r"[,;]|\\\\", latex):
            raise
        return reader.parse(chain[-1])


def _to_latex(text: str, euler: bool) -> str:
    text = _BASE.sub(_base, _ARRAY.sub(r"\\begin{pmatrix}\1\\end{pmatrix}", text))
    if not euler:
        text = _E_NOTATION.sub(r"(\g<mantissa>\\cdot 10^{\g<exponent>})", text)
    text = _SIGNED_POWER.sub(r"^{\1}", _ODD_ROOT.sub(r"(-\\sqrt[\1]{\2})", text))
    text = _REPEATING.sub(_fraction, _LOST_EXPONENT.sub(r"^{\\text{Tletter}}", text))
    text = _GAMMA.sub(r"\\text{\1letter}", text)
    text = _MIXED.sub(_mixed, _NAMED_INDEX.sub(r"_{\1}", text))
    if "matrix" not in text:
        text = _LINE_BREAK.sub(",", text)
    return _PRIMES.sub(
        lambda m: "_{" + "q" * max(m[0].count("'") + m[0].count("prime"), 1) + "}", text
    )


def _fraction(match: re.Match[str]) -> str:
    number = numbers.read(match.group())
    assert number
    return rf"\frac{{{number.value.numerator}}}{{{number.value.denominator}}}"


def _is_prose(latex: str) -> bool:
    """Whether bare words stand in the text, which the parser would read as products of letters."""
    words = [word for word in _WORD.findall(_GROUP.sub(" ", latex)) if not word.isupper()]
    return any(len(word) > 4 or (len(word) == 4 and word not in _ALPHABET) for word in words) or (
        _TWO_WORDS.search(_GROUP.sub("+", latex)) is not None
    )


def _base(match: re.Match[str]) -> str:
    base = _BASES.get(match["base"], match["base"])
    digits = (match["grouped"] or match["digits"]).lstrip("0") or "0"
    return digits if base == "10" else f"{digits}_{{{base}}}"


def _mixed(match: re.Match[str]) -> str:
    top, bottom = match["top"] or match["above"], match["bottom"] or match["below"]
    if int(top) < int(bottom):
        return rf"({match['whole']}+\frac{{{top}}}{{{bottom}}})"
    return rf"{match['whole']}\cdot\frac{{{top}}}{{{bottom}}}" if match["above"] else match.group()


class _LatexReader(_Latex2Sympy):
    """The parser of math-verify, without its guesses."""

    def __init__(self, text: str):
        super().__init__(
            is_real=True,
            convert_degrees=_TRIGONOMETRIC.search(text) is not None,
            config=_CASE_MATTERS,
        )
        self._index_i = _INDEX_I.search(text) is not None

    def convert_atom(self, atom: Any) -> Any:
        number = atom.number_subexpr()
        if number and number.subexpr():  # a number in another base is not its digits
            return sympy.Symbol(number.getText(), real=True)
        return super().convert_atom(atom)

    def convert_atom_expr(self, atom_expr: Any) -> Any:
        letter = atom_expr.LETTER_NO_E()
        if letter and letter.getText() == "I" and not atom_expr.subexpr():  # a current, not i
            power = atom_expr.supexpr() if hasattr(atom_expr, "supexpr") else None
            base = sympy.Symbol("I", real=True)
            if not power:
                return base
            convert = self.convert_expr if power.expr() else self.convert_atom
            exponent: Any = convert(power.expr() or power.atom())
            return sympy.Pow(base, exponent, evaluate=False)
        result = super().convert_atom_expr(atom_expr)
        if self._index_i:
            return result
        return result.xreplace(
            {sympy.Symbol(name, real=True): sympy.I for name in ("i", "math{i}")}
        )

    def handle_gcd_lcm(self, f: str, args: Any) -> Any:
        if all(arg.is_number for arg in args):
            return super().handle_gcd_lcm(f, args)
        return sympy.Function(f)(*args)  # of variables, not of polynomials

    def convert_postfix_list(self, arr: Any, i: int = 0) -> Any:
        parts = [self.convert_postfix(part) for part in arr[i:]]
        texts = [part.getText() for part in arr[i:]]
        if any(
            a[-1:].isdigit() and b[:1].isdigit() for a, b in zip(texts, texts[1:], strict=False)
        ):
            raise ValueError("two numbers without an operator")
        if len(parts) == 1 or not all(isinstance(p, sympy.Expr | sympy.MatrixBase) for p in parts):
            return super().convert_postfix_list(arr, i)
        product = parts[-1]
        for part in reversed(parts[:-1]):
            matrix = isinstance(part, sympy.MatrixBase) or isinstance(product, sympy.MatrixBase)
            product = (self.mat_mul_flat if matrix else self.mul_flat)(part, product)
        return product
