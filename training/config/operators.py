"""The operators of the dialect, on the closed set of config values, with bounded cost."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from deploykit.training.config.formatting import percent_format
from deploykit.training.config.limits import (
    MAX_INTEGER_BITS,
    Budget,
    EvaluationError,
    check_integer,
)
from deploykit.training.config.tracked import (
    BaseDict,
    TrackedDict,
    TrackedList,
    TrackedTuple,
    type_name,
)

_ARITHMETIC: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
    ast.FloorDiv: ("//", operator.floordiv),
    ast.Mod: ("%", operator.mod),
    ast.Pow: ("**", operator.pow),
    ast.LShift: ("<<", operator.lshift),
    ast.RShift: (">>", operator.rshift),
    ast.BitAnd: ("&", operator.and_),
    ast.BitOr: ("|", operator.or_),
    ast.BitXor: ("^", operator.xor),
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}


def supports(kind: type[ast.operator]) -> bool:
    """Return whether the dialect has a binary operator."""
    return kind in _ARITHMETIC


def unary(kind: type[ast.unaryop], value: Any) -> Any:
    """Apply ``+``, ``-``, ``~`` or ``not``."""
    if kind is not ast.Not and not isinstance(value, int | float):
        raise TypeError(f"a sign or '~' is not defined for {type_name(value)}")
    return check_integer(_UNARY[kind](value))


def compare(kind: type[ast.cmpop], left: Any, right: Any, budget: Budget) -> bool:
    """Apply a comparison; both sides are paid for in full."""
    if kind not in (ast.Is, ast.IsNot):
        budget.charge(left)
        budget.charge(right)
    try:
        return bool(_COMPARISONS[kind](left, right))
    except TypeError:
        raise TypeError(
            f"{type_name(left)} cannot be compared with {type_name(right)} in this way"
        ) from None


def binary(kind: type[ast.operator], left: Any, right: Any, budget: Budget) -> Any:
    """Apply an arithmetic, bit or sequence operator.

    Args:
        kind: The operator's node type.
        left: Left operand.
        right: Right operand.
        budget: Pays for the result.

    Raises:
        EvaluationError: The result would be too large.
        TypeError: The operator is not defined for these operands; other exceptions of arithmetic
            (``ZeroDivisionError``, ``OverflowError``, ``ValueError``) pass as well.
    """
    symbol, function = _ARITHMETIC[kind]
    if isinstance(left, int | float) and isinstance(right, int | float):
        return _number(symbol, function, left, right)
    if isinstance(left, str):
        if symbol == "+" and isinstance(right, str):
            budget.spend_text(len(left) + len(right))
            return left + right
        if symbol == "%":
            return percent_format(left, right, budget)
    if symbol == "+" and isinstance(left, TrackedList) and isinstance(right, TrackedList):
        budget.spend(len(left) + len(right))
        return TrackedList(list(left) + list(right), left.marks + right.marks)
    if symbol == "+" and isinstance(left, TrackedTuple) and isinstance(right, TrackedTuple):
        budget.spend(len(left) + len(right))
        return TrackedTuple.of(tuple(left) + tuple(right), left.marks + right.marks)
    if symbol == "*" and isinstance(left, int) and not isinstance(right, int):
        left, right = right, left
    if symbol == "*" and isinstance(right, int):
        return _repeated(left, right, budget)
    if symbol == "|" and isinstance(left, TrackedDict) and isinstance(right, TrackedDict):
        return _united(left, right, budget)
    if isinstance(left, set) and isinstance(right, set) and symbol in "-&|^":
        budget.spend(len(left) + len(right))
        return function(left, right)
    raise TypeError(f"'{symbol}' is not defined for {type_name(left)} and {type_name(right)}")


def _number(
    symbol: str, function: Callable[[Any, Any], Any], left: int | float, right: int | float
) -> Any:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        if symbol == "**" and left.bit_length() * right > MAX_INTEGER_BITS and abs(left) > 1:
            raise EvaluationError(f"the power has more than {MAX_INTEGER_BITS} bits")
        if symbol == "<<" and left.bit_length() + right > MAX_INTEGER_BITS:
            raise EvaluationError(f"the shift has more than {MAX_INTEGER_BITS} bits")
    result = function(left, right)
    if isinstance(result, complex):
        raise ValueError("the power is a complex number")
    return check_integer(result)


def _repeated(value: Any, times: int, budget: Budget) -> Any:
    if isinstance(value, str):
        budget.spend_text(len(value) * max(times, 0))
        return value * times
    if isinstance(value, TrackedList | TrackedTuple):
        budget.spend(1 + len(value) * max(times, 0))
        if isinstance(value, TrackedList):
            return TrackedList(list(value) * times, value.marks * times)
        return TrackedTuple.of(tuple(value) * times, value.marks * times)
    raise TypeError(f"'*' is not defined for {type_name(value)} and an integer")


def _united(left: TrackedDict, right: TrackedDict, budget: Budget) -> TrackedDict:
    budget.spend(len(left) + len(right))
    result = BaseDict() if isinstance(left, BaseDict) else TrackedDict()
    for part in (left, right):
        for key, value in part.items():
            if isinstance(left, BaseDict):
                budget.charge(value)
            result.put(key, value, part.marks[key])
    return result
