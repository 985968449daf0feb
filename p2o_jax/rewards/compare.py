r"""Decides whether two SymPy objects that were read from answers are equal.

What is a list, interval or equation, and which of their spellings agree, follows math-verify.
Numbers and formulas are compared by `formulas`.
"""

from collections.abc import Sequence
from typing import Any

import sympy
from latex2sympy2_extended import is_expr_of_only_symbols
from latex2sympy2_extended.logic import And
from latex2sympy2_extended.sets import FiniteSet as WrittenSet
from sympy import FiniteSet, Interval, MatrixBase, Tuple
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from p2o_jax.rewards import formulas
from p2o_jax.rewards.reading import Read

_MAX_OPERATIONS = 100  # of an equation that is multiplied out
_MAX_MATCHED = 60  # entries of sets whose order does not matter
_INVERSE = {sympy.StrictGreaterThan: sympy.StrictLessThan, sympy.GreaterThan: sympy.LessThan}


def equal(gold: Read, answer: Read) -> bool:
    """Whether an answer equals the reference. Not symmetric: "x = 5" may be given for "5"."""
    gold, answer = _shortened(gold), _shortened(answer)
    if _is_equation(answer) and not _is_relation(gold):
        answer = _answered(answer)
    elif isinstance(gold, sympy.Eq) and _is_assignment(gold) and not _is_equation(answer):
        gold = gold.rhs
    if gold == answer:
        return gold not in (sympy.nan, sympy.zoo)
    if _is_relation(gold) and isinstance(answer, sympy.Eq) and isinstance(answer.rhs, sympy.Set):
        answer = answer.rhs  # x \in [0, 1]
    if _is_relation(gold) and isinstance(answer, sympy.Set):
        gold = _as_set(gold)
    if _is_relation(gold) or _is_relation(answer):
        return _is_relation(gold) and _is_relation(answer) and _relations_equal(gold, answer)
    if isinstance(gold, sympy.Set | Tuple) or isinstance(answer, sympy.Set | Tuple):
        return _sets_equal(gold, answer)
    if _is_matrix(gold) or _is_matrix(answer):
        return _matrices_equal(gold, answer)
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return formulas.expressions_equal(gold, answer)
    return False


# Equations and inequalities


def _is_relation(value: Any) -> bool:
    if not isinstance(value, And):
        return isinstance(value, Relational)
    parts = _parts(value)
    return bool(parts) and all(isinstance(part, Relational) for part in parts)


def _parts(relation: Any) -> list[Any]:
    return list(_unsorted(relation)) if isinstance(relation, And) else [relation]


def _unsorted(value: Any) -> Sequence[Any]:
    """The arguments of a SymPy value in the order in which they were given."""
    return value._unsorted_args


def _is_equation(value: Any) -> bool:
    return _is_relation(value) and all(isinstance(part, sympy.Eq) for part in _parts(value))


def _is_assignment(value: Any) -> bool:
    return _is_equation(value) and is_expr_of_only_symbols(_parts(value)[0].lhs)


def _sides(equation: Any) -> list[Any]:
    """All sides of a chain a = b = c."""
    parts = _parts(equation)
    return [parts[0].lhs, *(part.rhs for part in parts)]


def _shortened(value: Any) -> Any:
    """A chain x = a = b as x = b, if all its values are equal."""
    if isinstance(value, And) and _is_assignment(value):
        sides = _sides(value)
        if _consistent([s for s in sides if not is_expr_of_only_symbols(s)]):
            return sympy.Eq(sides[0], sides[-1], evaluate=False)
    return value


def _answered(equation: Any) -> Any:
    """The right side of an equation that is given as an answer; None if it cannot be the value.

    Where the left side is 2x or -x, the right side is not x. Constants on both sides must be equal.
    """
    sides = _sides(equation)
    left = sides[0]
    if not isinstance(left, sympy.Expr) or isinstance(equation, And):
        named = isinstance(equation, sympy.Eq) and is_expr_of_only_symbols(left)
        return sides[-1] if named or _consistent(sides) else None
    if len(left.free_symbols) == 1 and is_expr_of_only_symbols(left / left.as_coeff_Mul()[0]):
        return sides[-1] if left.as_coeff_Mul()[0] == 1 else None
    return sides[-1] if left.free_symbols or _consistent(sides) else None


def _consistent(sides: Sequence[Any]) -> bool:
    """Whether all values are equal: 3 = 4 is no answer."""
    return all(equal(sides[-1], side) for side in sides[:-1])


def _as_set(relation: Any) -> Any:
    functions = {f: sympy.Symbol(f"!{f}", real=True) for f in relation.atoms(AppliedUndef)}
    try:
        return relation.xreplace(functions).as_set()
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        return relation


def _relations_equal(gold: Any, answer: Any) -> bool:
    ours, theirs = _parts(gold), _parts(answer)
    if len(ours) != len(theirs):
        return False
    return any(
        all(_relation_equal(a, b) for a, b in zip(ours, order, strict=True))
        for order in (theirs, theirs[::-1])
    )


def _relation_equal(gold: Relational, answer: Relational) -> bool:
    """Whether one is a constant multiple of the other, both brought to one side."""
    if _is_assignment(gold) and _is_assignment(answer) and gold.lhs == answer.lhs:
        return equal(gold.rhs, answer.rhs)
    kinds, differences = [], []
    for relation in (gold, answer):
        left, right = relation.lhs, relation.rhs
        if type(relation) in _INVERSE:
            left, right = right, left
        if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
            return (
                type(gold) is type(answer)
                and equal(gold.lhs, answer.lhs)
                and (equal(gold.rhs, answer.rhs))
            )
        kinds.append(_INVERSE.get(type(relation), type(relation)))
        differences.append(formulas.computed(formulas.difference(left, right)))
    if kinds[0] is not kinds[1]:
        return False
    symmetric = kinds[0] in (sympy.Eq, sympy.Ne)
    if symmetric:  # y / x = 2 is y = 2 x
        differences = [_numerator(d) for d in differences]
    return _proportional(*differences, positive=not symmetric)


def _proportional(a: sympy.Expr, b: sympy.Expr, positive: bool) -> bool:
    """Whether a / b is a constant other than 0."""
    a, b = formulas.exact(a), formulas.exact(b)
    names = formulas.variables(a, b)
    if not a.free_symbols or not b.free_symbols:
        return False
    ratios = []
    for point in formulas.POINTS:
        values = [formulas.at(e, names, point) for e in (a, b)]
        if any(v is None or v == 0 for v in values):
            continue
        ratios.append((values[0] / values[1]).evalf(30))
    if len(ratios) < formulas.ENOUGH_POINTS:
        return False
    first = ratios[0]
    return all(abs(r - first) < abs(first) * sympy.Float("1e-20") for r in ratios) and (
        not positive or first.is_positive is True
    )


def _numerator(value: sympy.Expr) -> sympy.Expr:
    """The numerator of a rational function; other values as they are."""
    value = formulas.exact(value)
    if not value.is_rational_function() or sympy.count_ops(value) > _MAX_OPERATIONS:
        return value
    return sympy.fraction(sympy.together(value))[0]


# Lists, tuples, sets, intervals and matrices


def _sets_equal(gold: Any, answer: Any) -> bool:
    if isinstance(gold, Interval) and isinstance(answer, Interval):
        return (gold.left_open, gold.right_open) == (answer.left_open, answer.right_open) and (
            equal(gold.start, answer.start) and equal(gold.end, answer.end)
        )
    gold, answer = _pair(gold, answer), _pair(answer, gold)
    if isinstance(gold, FiniteSet | Tuple) and isinstance(answer, FiniteSet | Tuple):
        if isinstance(gold, FiniteSet):
            return _match(*_entries(gold, answer), equal)
        entries = _as_written(answer)
        return len(gold.args) == len(entries) and all(map(equal, gold.args, entries))
    if type(gold) is type(answer) and isinstance(gold, sympy.Union | sympy.Intersection):
        return _match(gold.args, answer.args, equal)
    if isinstance(gold, sympy.Complement) and isinstance(answer, sympy.Complement):
        return all(map(equal, gold.args, answer.args))
    if not isinstance(gold, sympy.Set) or not isinstance(answer, sympy.Set):
        return False
    gold, answer = formulas.exact(gold).doit(), formulas.exact(answer).doit()
    try:
        return gold == answer or gold.symmetric_difference(answer).is_empty is True
    except (NotImplementedError, TypeError, ValueError):
        return False


def _pair(value: Any, other: Any) -> Any:
    """A single value as a set; (a, b) as a pair of numbers where the other side has entries."""
    if isinstance(value, Interval) and isinstance(other, FiniteSet | Tuple) and value.is_open:
        return Tuple(value.start, value.end)
    return value if isinstance(value, sympy.Set | Tuple) else FiniteSet(value)


def _entries(gold: Any, answer: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """The entries of two sets; duplicates included, if both are written with as many."""
    ours, theirs = _as_written(gold), _as_written(answer)
    return (ours, theirs) if len(ours) == len(theirs) else (gold.args, answer.args)


def _as_written(entries: Any) -> Sequence[Any]:
    return _unsorted(entries) if isinstance(entries, WrittenSet) else entries.args


def _match(gold: Sequence[Any], answer: Sequence[Any], same: Any) -> bool:
    """Whether entries can be paired, in any order, so that all pairs are equal."""
    if len(gold) != len(answer) or len(gold) > _MAX_MATCHED:
        return False
    left = list(answer)
    for entry in gold:
        place = next((i for i, other in enumerate(left) if same(entry, other)), None)
        if place is None:
            return False
        left.pop(place)
    return True


def _is_matrix(value: Any) -> bool:
    return isinstance(value, MatrixBase | sympy.MatrixExpr)


def _matrices_equal(gold: Any, answer: Any) -> bool:
    if not _is_matrix(gold) or not _is_matrix(answer):
        return False
    gold, answer = gold.doit(), answer.doit()
    if not isinstance(gold, MatrixBase) or not isinstance(answer, MatrixBase):
        return gold == answer
    return gold.shape == answer.shape and all(map(equal, gold.flat(), answer.flat()))
