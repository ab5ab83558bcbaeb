"""The functions a config may call: pure builtins, and a few of ``copy``, ``math`` and ``os.path``.

Each takes the :class:`Call` it serves first. None can reach a file, a module or an attribute.
"""

from __future__ import annotations

import ast
import math
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from deploykit.training.config import operators
from deploykit.training.config.formatting import text_of
from deploykit.training.config.limits import Budget, EvaluationError, check_integer
from deploykit.training.config.tracked import (
    Origin,
    Produced,
    TrackedDict,
    TrackedList,
    TrackedTuple,
    checked_key,
    copied,
    type_name,
)

MAX_RANGE = 100_000
Function = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """What a function gets besides its arguments: who pays, and where the call stands."""

    budget: Budget
    origin: Origin


def slots(value: Any, call: Call) -> Iterator[tuple[Any, Origin]]:
    """Iterate over a value, each element with its origin (the call's if it has none).

    Sets are iterated in sorted order, so that a config means the same in every process.

    Raises:
        TypeError: The value cannot be iterated.
    """
    if isinstance(value, TrackedList | TrackedTuple | Produced):
        call.budget.spend(len(value))
        return iter(list(zip(value, value.marks, strict=True)))
    if isinstance(value, set):
        value = sorted(value, key=lambda item: (type(item).__name__, item))
    if isinstance(value, TrackedDict):
        call.budget.spend(len(value))
        return iter([(key, value.marks[key]) for key in value])
    if not isinstance(value, str | range | list):
        raise TypeError(f"{type_name(value)} cannot be iterated")
    call.budget.spend(len(value))
    return iter([(item, call.origin) for item in value])


def values_of(value: Any, call: Call) -> list[Any]:
    """Return the elements of an iterable as a list."""
    return [item for item, _ in slots(value, call)]


_EMPTY = TrackedTuple.of((), ())


def _list(call: Call, iterable: Any = _EMPTY, /) -> TrackedList:
    pairs = list(slots(iterable, call))
    return TrackedList([item for item, _ in pairs], [mark for _, mark in pairs])


def _tuple(call: Call, iterable: Any = _EMPTY, /) -> TrackedTuple:
    pairs = list(slots(iterable, call))
    return TrackedTuple.of([item for item, _ in pairs], [mark for _, mark in pairs])


def _set(call: Call, iterable: Any = _EMPTY, /) -> set[Any]:
    return {checked_key(item) for item in values_of(iterable, call)}


def _str(call: Call, value: Any = "", /) -> str:
    return text_of(value, call.budget)


def _int(call: Call, value: Any = 0, /, base: int | None = None) -> int:
    if not isinstance(value, str | int | float):
        raise TypeError(f"int() needs a string or a number, got {type_name(value)}")
    result = int(value) if base is None else int(value, base)  # type: ignore[arg-type]
    return int(check_integer(result))


def _float(call: Call, value: Any = 0.0, /) -> float:
    if not isinstance(value, str | int | float):
        raise TypeError(f"float() needs a string or a number, got {type_name(value)}")
    return float(value)


def _bool(call: Call, value: Any = False, /) -> bool:
    return bool(value)


def _len(call: Call, value: Any, /) -> int:
    return len(value)


def _range(call: Call, *bounds: int) -> range:
    result = range(*bounds)
    if len(result) > MAX_RANGE:
        raise EvaluationError(f"a range may have at most {MAX_RANGE:,} elements")
    return result


def _sum(call: Call, iterable: Any, /, start: Any = 0) -> Any:
    total = start
    for item in values_of(iterable, call):
        total = operators.binary(ast.Add, total, item, call.budget)
    return total


def _sorted(call: Call, iterable: Any, /, *, reverse: bool = False) -> TrackedList:
    pairs = list(slots(iterable, call))
    for item, _ in pairs:
        call.budget.charge(item)
    pairs = ordered(pairs, reverse=reverse)
    return TrackedList([item for item, _ in pairs], [mark for _, mark in pairs])


def ordered(pairs: Iterable[tuple[Any, Origin]], *, reverse: bool) -> list[tuple[Any, Origin]]:
    """Return values and their origins in the order of the values."""
    try:
        return sorted(pairs, key=lambda pair: pair[0], reverse=bool(reverse))
    except TypeError:
        raise TypeError("the elements have no order among one another") from None


_MISSING = object()


def _extreme(function: Function) -> Function:
    def apply(call: Call, *values: Any, default: Any = _MISSING) -> Any:
        items = values_of(values[0], call) if len(values) == 1 else list(values)
        for item in items:
            call.budget.charge(item)
        if not items and default is not _MISSING:
            return default
        if not items:
            raise ValueError(f"{function.__name__}() of nothing")
        try:
            return function(items)
        except TypeError:
            raise TypeError("the elements have no order among one another") from None

    return apply


def _zip(call: Call, *iterables: Any, strict: bool = False) -> Produced:
    columns = [list(slots(iterable, call)) for iterable in iterables]
    lengths = {len(column) for column in columns}
    if strict and len(lengths) > 1:
        raise ValueError("zip() arguments have different lengths")
    rows = [
        TrackedTuple.of([item for item, _ in row], [mark for _, mark in row])
        for row in zip(*columns, strict=False)
    ]
    return Produced.of(rows, [call.origin] * len(rows))


def _enumerate(call: Call, iterable: Any, start: int = 0) -> Produced:
    pairs = list(slots(iterable, call))
    if not isinstance(start, int):
        raise TypeError(f"enumerate() needs an integer start, got {type_name(start)}")
    rows = [
        TrackedTuple.of((number, item), (mark, mark))
        for number, (item, mark) in enumerate(pairs, start)
    ]
    return Produced.of(rows, [call.origin] * len(rows))


def _reversed(call: Call, sequence: Any, /) -> Produced:
    pairs = list(slots(sequence, call))[::-1]
    return Produced.of([item for item, _ in pairs], [mark for _, mark in pairs])


def _round(call: Call, number: Any, ndigits: int | None = None) -> Any:
    if ndigits is not None and abs(ndigits) > 400:
        raise EvaluationError("round() takes at most 400 digits")
    return round(number, ndigits)


def _abs(call: Call, number: Any, /) -> Any:
    return abs(number)


def _any(call: Call, iterable: Any, /) -> bool:
    return any(values_of(iterable, call))


def _all(call: Call, iterable: Any, /) -> bool:
    return all(values_of(iterable, call))


def _divmod(call: Call, left: Any, right: Any, /) -> TrackedTuple:
    return TrackedTuple.of(divmod(left, right), [call.origin] * 2)


# dict() is the interpreter's own, because it keeps the origin of each keyword.
BUILTINS: dict[str, Function] = {
    "abs": _abs,
    "all": _all,
    "any": _any,
    "bool": _bool,
    "divmod": _divmod,
    "enumerate": _enumerate,
    "float": _float,
    "int": _int,
    "len": _len,
    "list": _list,
    "max": _extreme(max),
    "min": _extreme(min),
    "range": _range,
    "reversed": _reversed,
    "round": _round,
    "set": _set,
    "sorted": _sorted,
    "str": _str,
    "sum": _sum,
    "tuple": _tuple,
    "zip": _zip,
}


def _copy(call: Call, value: Any, /) -> Any:
    call.budget.charge(value)
    if isinstance(value, TrackedDict):
        result = type(value)()
        for key, item in value.items():
            result.put(key, item, value.marks[key])
        return result
    if isinstance(value, TrackedList):
        return TrackedList(value, value.marks)
    return set(value) if isinstance(value, set) else value


def _deepcopy(call: Call, value: Any, /) -> Any:
    return copied(value, call.budget, shared={})


def _of_text(function: Function) -> Function:
    def apply(call: Call, *parts: str) -> Any:
        for part in parts:
            if not isinstance(part, str):
                raise TypeError(f"{function.__name__}() needs strings, got {type_name(part)}")
        call.budget.spend_text(sum(len(part) for part in parts))
        result = function(*parts)
        if isinstance(result, tuple):
            return TrackedTuple.of(result, [call.origin] * len(result))
        return result

    return apply


def _of_numbers(function: Function) -> Function:
    def apply(call: Call, *numbers: float) -> Any:
        for number in numbers:
            if not isinstance(number, int | float):
                raise TypeError(f"{function.__name__}() needs numbers, got {type_name(number)}")
        return check_integer(function(*numbers))

    return apply


_MATH = ("ceil", "cos", "exp", "floor", "log", "log10", "log2", "pow", "sin", "sqrt", "tan")
_PATH = ("basename", "dirname", "join", "normpath", "split", "splitext")
LIBRARY: dict[str, Function] = {
    "copy.copy": _copy,
    "copy.deepcopy": _deepcopy,
    **{f"math.{name}": _of_numbers(getattr(math, name)) for name in _MATH},
    **{f"os.path.{name}": _of_text(getattr(posixpath, name)) for name in _PATH},
}
CONSTANTS: dict[str, float] = {
    "math.e": math.e,
    "math.inf": math.inf,
    "math.nan": math.nan,
    "math.pi": math.pi,
    "math.tau": math.tau,
}
