"""Containers that remember where each of their slots was set.

The interpreter builds configs from these, so that after all merging the file, line and column of
every value is known. They compare and print like the builtin types they derive from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from deploykit.training.config.limits import Budget, EvaluationError, check_depth

DELETE_KEY = "_delete_"


class Origin(NamedTuple):
    """Where a value was set: a file and a 1-based line and column.

    For an option of the command line ``file`` is ``"<options>"`` and ``line`` counts the options.
    """

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class TrackedDict(dict[Any, Any]):
    """A dict with an origin per key."""

    __slots__ = ("marks",)

    def __init__(self) -> None:
        super().__init__()
        self.marks: dict[Any, Origin] = {}

    def put(self, key: Any, value: Any, origin: Origin) -> None:
        """Set a key."""
        self[key] = value
        self.marks[key] = origin

    def take(self, key: Any) -> Any:
        """Remove a key and return its value."""
        del self.marks[key]
        return self.pop(key)


class BaseDict(TrackedDict):
    """A dict that came from a base config.

    As MMEngine's ``ConfigDict``: keys are also attributes, ``update`` merges nested dicts, and what
    is stored in it becomes of the same kind, lists and tuples being copied.
    """

    __slots__ = ()

    def put(self, key: Any, value: Any, origin: Origin) -> None:
        """Set a key to a value, whose dicts become of this kind."""
        super().put(key, _adopt(value), origin)


class TrackedList(list[Any]):
    """A list with an origin per element."""

    __slots__ = ("marks",)

    def __init__(self, items: Iterable[Any] = (), marks: Iterable[Origin] = ()) -> None:
        super().__init__(items)
        self.marks: list[Origin] = list(marks)


class TrackedTuple(tuple[Any, ...]):
    """A tuple with an origin per element."""

    marks: tuple[Origin, ...]

    @classmethod
    def of(cls, items: Iterable[Any], marks: Iterable[Origin]) -> TrackedTuple:
        """Return a tuple of ``items`` that were set at ``marks``."""
        result = cls(items)
        result.marks = tuple(marks)
        return result


class Produced(tuple[Any, ...]):
    """What ``zip()``, ``d.items()`` or a generator gives: to iterate, not to keep in a config."""

    marks: tuple[Origin, ...]

    @classmethod
    def of(cls, items: Iterable[Any], marks: Iterable[Origin]) -> Produced:
        """Return a sequence of ``items`` that were set at ``marks``."""
        result = cls(items)
        result.marks = tuple(marks)
        return result


def _adopt(value: Any) -> Any:
    kind = type(value)
    if kind is TrackedDict:
        result = BaseDict()
        for key, item in value.items():
            result.put(key, item, value.marks[key])
        return result
    if kind is TrackedList:
        return TrackedList([_adopt(item) for item in value], value.marks)
    if kind is TrackedTuple:
        return TrackedTuple.of([_adopt(item) for item in value], value.marks)
    return value


def copied(
    value: Any,
    budget: Budget,
    *,
    base: bool = False,
    shared: dict[int, Any] | None = None,
    depth: int = 0,
) -> Any:
    """Return a deep copy.

    Args:
        value: Any value of the interpreter.
        budget: Pays for the copy.
        base: Whether the dicts of the copy are :class:`BaseDict`; otherwise each keeps its kind.
        shared: An empty dict when parts that occur twice in ``value`` shall be shared in the copy,
            as ``copy.deepcopy`` does; by default nothing is shared.
        depth: Levels above ``value``.
    """
    check_depth(depth)
    budget.spend(1)
    if not isinstance(value, TrackedDict | TrackedList | TrackedTuple):
        return set(value) if isinstance(value, set) else value
    if shared is not None and id(value) in shared:
        return shared[id(value)]

    def inner(item: Any) -> Any:
        return copied(item, budget, base=base, shared=shared, depth=depth + 1)

    result: Any
    if isinstance(value, TrackedDict):
        result = BaseDict() if base else type(value)()
        for key, item in value.items():
            # The directive has done its work in the config that is now a base.
            if not (base and key == DELETE_KEY):
                TrackedDict.put(result, key, inner(item), value.marks[key])
    elif isinstance(value, TrackedList):
        result = TrackedList([inner(item) for item in value], value.marks)
    else:
        result = TrackedTuple.of([inner(item) for item in value], value.marks)
    if shared is not None:
        shared[id(value)] = result
    return result


def tracked(value: Any, origin: Origin) -> Any:
    """Return a deep copy of plain data as tracked containers, every slot set at ``origin``.

    Raises:
        EvaluationError: The data holds something a config cannot, contains itself, or is nested
            too deeply.
    """
    return _tracked(value, origin, 0)


def _tracked(value: Any, origin: Origin, depth: int) -> Any:
    check_depth(depth)
    if isinstance(value, dict):
        result = TrackedDict()
        for key, item in value.items():
            result.put(checked_key(key), _tracked(item, origin, depth + 1), origin)
        return result
    if isinstance(value, list | tuple):
        items = [_tracked(item, origin, depth + 1) for item in value]
        marks = [origin] * len(items)
        if isinstance(value, list):
            return TrackedList(items, marks)
        return TrackedTuple.of(items, marks)
    if isinstance(value, set):
        return {checked_key(item) for item in value}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise EvaluationError(f"a config cannot hold a value of type {type(value).__name__}")


def checked_key(key: Any) -> Any:
    """Return ``key`` if it can be a dict key or set element of a config.

    Tuples and huge integers are refused: their hashes can be made to collide, which would make a
    small config take hours.
    """
    if isinstance(key, int):
        if abs(key) >= 2**63:
            raise EvaluationError("an integer with more than 63 bits cannot be a key")
        return key
    if key is None or isinstance(key, str | float):
        return key
    raise EvaluationError(
        "dict keys and set elements must be strings, numbers, booleans or None, "
        f"got {type_name(key)}"
    )


def type_name(value: Any) -> str:
    """Return how a message names the type of a value."""
    if value is None:
        return "None"
    for kind in (dict, list, tuple, set, bool, int, float, str):
        if isinstance(value, kind):
            return f"a {kind.__name__}" if kind is not int else "an int"
    return f"a {type(value).__name__}"
