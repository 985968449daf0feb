"""Evaluates text of the policy where a library would run it as Python."""

import ast
import builtins
import operator
import re
from collections.abc import Callable
from typing import Any

_FORMULA = re.compile(r"[A-Za-z0-9_\s+\-*/^().,!]*")
_NAMES = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CALLED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*\(")
_ATTRIBUTE = re.compile(r"\.\s*[A-Za-z_]|__")
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan"} | {
    *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
    *("exp", "log", "ln", "sqrt", "Abs", "abs", "factorial"),
}
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}


def evaluate(text: str) -> Any:
    """The value of a literal, or of arithmetic on numbers."""
    return _value(ast.parse(text.strip(), mode="eval").body)


def check_formula(text: str) -> None:
    """Raises a ValueError unless the text is a formula of numbers, symbols and known functions."""
    called = set(_CALLED.findall(text)) - _FUNCTIONS
    known = {name for name in _NAMES.findall(text) if hasattr(builtins, name)}
    code = called | (known - _FUNCTIONS - {"True", "False", "None"})
    if not _FORMULA.fullmatch(text) or _ATTRIBUTE.search(text) or code:
        raise ValueError("not a formula")


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if not all(isinstance(v, int | float) for v in (left, right)):
            raise ValueError("arithmetic on values that are no numbers")
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand))
    return ast.literal_eval(node)
