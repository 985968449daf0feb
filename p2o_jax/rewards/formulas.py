r"""Decides whether two numbers or formulas in SymPy are equal.

math-verify calls two expressions equal if their difference vanishes when it is rounded, so that all
tiny numbers are equal. Here a difference must vanish at every precision: constants are evaluated to
hundreds of digits, formulas at several points.
"""

import itertools
import typing
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from p2o_jax.rewards import numbers

_DIGITS = 15  # of a value
_VANISHING = 100  # digits by which a vanishing difference is smaller than the values
_MAX_PRECISION = 100_000  # in digits; larger numbers are equal only if they are written alike
# Values of the variables, in turn; of both signs, so that |x| is not x.
POINTS = tuple(
    tuple(Fraction(numerator, 997) for numerator in numerators)
    for numerators in (
        (1303, 2239, 701, 1789, 577, 2801, 1117, 409),
        (-1511, 1907, -839, 2311, -443, 1201, -2069, 613),
        (1613, -733, 2143, -1877, 2503, -1009, 401, -1399),
        (-619, -2203, -1427, -503, -1861, -907, -2609, -1103),
        (4211, 6121, 5009, 7333, 3701, 8117, 4603, 6701),
        (307, 163, 439, 211, 557, 89, 373, 241),
    )
)
ENOUGH_POINTS = 3


def expressions_equal(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    """Whether an answer's expression equals the reference's. A percent sign counts as a factor
    of 1/100, or as a unit that one of the two leaves out.
    """
    (gold, gold_percent), (answer, answer_percent) = _percent(gold), _percent(answer)
    if gold_percent != answer_percent:
        hundredth = sympy.Rational(1, 100)
        return expressions_equal(gold, answer) or (
            expressions_equal(gold * hundredth, answer)
            if gold_percent
            else expressions_equal(gold, answer * hundredth)
        )
    for number, other in ((gold, answer), (answer, gold)):
        if isinstance(number, sympy.Float) and not other.free_symbols:
            return _decimal_equal(number, other)
    gold, answer = computed(exact(gold)), computed(exact(answer))
    if gold == answer:
        return True
    if gold.is_infinite or answer.is_infinite:
        return False
    names = variables(gold, answer)
    if not names:
        return _vanishes(gold, answer, {}) is True
    functions = {f for e in (gold, answer) for f in e.atoms(AppliedUndef)}
    if functions:  # f(x) is one more variable
        known = {f: sympy.Symbol(f"!{f}", real=True) for f in functions}
        ours, theirs = (typing.cast(sympy.Expr, e.xreplace(known)) for e in (gold, answer))
        return expressions_equal(ours, theirs)
    return _formulas_equal(gold, answer, names)


def _formulas_equal(gold: sympy.Expr, answer: sympy.Expr, names: Sequence[str]) -> bool:
    """Whether two formulas have the same value at all points where one of them is real."""
    complex_ones = gold.has(sympy.I) or answer.has(sympy.I)
    agreed = 0
    for point in POINTS:
        values = _values(names, point, gold, answer)
        vanishes = _vanishes(gold, answer, values)
        if vanishes:
            agreed += 1
        elif vanishes is False:
            results = [e.evalf(_DIGITS, subs=values) for e in (gold, answer)]
            if complex_ones or any(r.is_real for r in results):
                return False
    if agreed >= ENOUGH_POINTS:
        return True
    try:
        return sympy.simplify(gold - answer) == 0
    except (NotImplementedError, ValueError, TypeError, AttributeError):
        return False


def _vanishes(a: sympy.Expr, b: sympy.Expr, values: dict[Any, Any]) -> bool | None:
    """Whether a - b is 0, as far as can be seen; None if it has no finite value."""
    try:
        rough = [_parts_of(e.evalf(_DIGITS, subs=values)) for e in (a, b)]
        if any(parts is None for parts in rough):
            return None
        magnitude = max(_exponent(part) for parts in rough for part in parts or ())
        precision = _VANISHING + max(magnitude, 0)
        if precision > _MAX_PRECISION:
            return False
        parts = _parts_of(difference(a, b).evalf(_DIGITS, subs=values, maxn=precision))
    except (ValueError, TypeError, ArithmeticError, NotImplementedError, AttributeError):
        return None
    # SymPy gives a value without a single correct digit the precision 1.
    return parts and all(part == 0 or getattr(part, "_prec", 53) == 1 for part in parts)


def _parts_of(value: sympy.Expr) -> tuple[sympy.Number, sympy.Number] | None:
    """Real and imaginary part of a finite number, else None."""
    real, imaginary = value.as_real_imag()
    if not isinstance(real, sympy.Number) or not isinstance(imaginary, sympy.Number):
        return None
    return (real, imaginary) if real.is_finite and imaginary.is_finite else None


def _exponent(value: sympy.Number) -> int:
    """The decimal digits before the point of a floating-point number, roughly."""
    _, _, exponent, size = sympy.Float(value)._mpf_
    return int((exponent + size) * 0.30103) if value != 0 else 0


def difference(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    """a - b, not evaluated."""
    return sympy.Add(a, sympy.Mul(-1, b, evaluate=False), evaluate=False)


def _decimal_equal(decimal: sympy.Float, other: sympy.Expr) -> bool:
    """Whether a decimal equals a constant, or stands for it; see `numbers.equal`."""
    ours = _number(decimal)
    if isinstance(other, sympy.Float):
        return numbers.equal(ours, _number(other))
    other = computed(exact(other))
    if isinstance(other, sympy.Rational):
        return numbers.equal(ours, numbers.Number(Fraction(other.p, other.q)))
    if _vanishes(other, sympy.Rational(ours.value), {}):
        return True
    value = other.evalf(40)
    if not isinstance(value, sympy.Float):
        return False
    return numbers.equal(ours, numbers.Number(Fraction(str(value))))


def _number(decimal: sympy.Float) -> numbers.Number:
    text = str(decimal).rstrip("0")
    number = numbers.read(text.lstrip("-"))
    assert number, text
    return number._replace(value=-number.value if text.startswith("-") else number.value)


def _percent(value: sympy.Expr) -> tuple[sympy.Expr, bool]:
    if isinstance(value, sympy.Mul) and len(value.args) == 2:
        number, sign = value.args
        if sign == sympy.UnevaluatedExpr(sympy.Rational(1, 100)):
            return number, True
    return value, False


def exact(value: Any) -> Any:
    """With decimals as fractions."""
    floats = value.atoms(sympy.Float)
    return (
        value.xreplace({f: sympy.Rational(_number(f).value) for f in floats}) if floats else value
    )


_COMPUTED = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative, sympy.Mod)


def computed(value: sympy.Expr) -> sympy.Expr:
    """With sums, integrals and the like carried out, but for infinite sums that have variables."""
    if not value.has(*_COMPUTED, sympy.UnevaluatedExpr):
        return value
    opaque = {
        s: sympy.Symbol(f"!{_renamed(s)}", real=True)
        for s in value.atoms(sympy.Sum, sympy.Product)
        if s.free_symbols and any(bound.is_infinite for bound in s.limits[0][1:])
    }
    derivatives = {  # dy/dx, where y is an unknown function of x, and not a constant
        d: sympy.Symbol(f"!{d}", real=True)
        for d in value.atoms(sympy.Derivative)
        if d.expr.free_symbols and not set(d.variables) & d.expr.free_symbols
    }
    return value.xreplace(opaque | derivatives).doit()


def _renamed(value: Any) -> Any:
    """A sum or product whose index has a fixed name; its terms are compared as they are written."""
    return value.xreplace({limit[0]: sympy.Symbol(f"!{i}") for i, limit in enumerate(value.limits)})


def variables(*values: sympy.Expr) -> list[str]:
    """The names of the variables in the expressions, sorted."""
    return sorted({s.name for v in values for s in v.free_symbols if isinstance(s, sympy.Symbol)})


def _values(names: Sequence[str], point: Sequence[Fraction], *expressions: Any) -> dict[Any, Any]:
    """The point's values of the variables; more variables than values get others."""
    cycle = itertools.cycle(point)
    by_name = {
        name: sympy.Rational(next(cycle) + Fraction(i // len(point), 13))
        for i, name in enumerate(names)
    }
    symbols = {s for e in expressions for s in e.free_symbols}
    return {s: by_name[s.name] for s in symbols}


def at(value: sympy.Expr, names: Sequence[str], point: Sequence[Fraction]) -> Any:
    """The finite value of an expression at a point of its variables; None if it has none."""
    try:
        result = value.evalf(40, subs=_values(names, point, value))
    except (ValueError, TypeError, ZeroDivisionError, NotImplementedError, AttributeError):
        return None
    return result if result.is_number and result.is_finite else None
