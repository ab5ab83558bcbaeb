"""The methods a config may call on strings, lists, tuples, dicts and sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deploykit.training.config.formatting import format_string
from deploykit.training.config.functions import LIBRARY, Call, Function, ordered, slots, values_of
from deploykit.training.config.limits import EvaluationError
from deploykit.training.config.merge import merge_from_update, merged
from deploykit.training.config.tracked import (
    DELETE_KEY,
    BaseDict,
    Produced,
    TrackedDict,
    TrackedList,
    TrackedTuple,
    checked_key,
    type_name,
)

_MISSING = object()


def find_method(value: Any, name: str) -> Function | None:
    """Return the implementation of a method, or None if the dialect has no such method."""
    return methods_of(value).get(name)


def methods_of(value: Any) -> Mapping[str, Function]:
    """Return the methods that a value has in the dialect."""
    for kind, methods in _METHODS:
        if isinstance(value, kind):
            return methods
    return {}


# --- strings ---


def _plain(name: str) -> Function:
    """Return a string method whose result is no longer than its operands."""
    method: Callable[..., Any] = getattr(str, name)

    def apply(call: Call, text: str, *args: Any, **kwargs: Any) -> Any:
        call.budget.spend_text(len(text) * 2)
        result = method(text, *args, **kwargs)
        if isinstance(result, list):
            call.budget.spend(len(result))
            return TrackedList(result, [call.origin] * len(result))
        if isinstance(result, tuple):
            return TrackedTuple.of(result, [call.origin] * len(result))
        return result

    return apply


def _padded(name: str) -> Function:
    method: Callable[..., str] = getattr(str, name)

    def apply(call: Call, text: str, width: int, *fill: str) -> str:
        call.budget.spend_text(max(len(text), width))
        return method(text, width, *fill)

    return apply


def _replace(call: Call, text: str, old: str, new: str, count: int = -1, /) -> str:
    call.budget.spend_text(len(text))
    found = text.count(old)
    found = min(found, count) if count >= 0 else found
    call.budget.spend_text(len(text) + found * len(new))
    return text.replace(old, new, count)


def _join(call: Call, text: str, iterable: Any, /) -> str:
    parts = values_of(iterable, call)
    if not all(isinstance(part, str) for part in parts):
        raise TypeError("join() needs strings")
    call.budget.spend_text(sum(len(part) + len(text) for part in parts))
    return text.join(parts)


def _format(call: Call, text: str, *args: Any, **kwargs: Any) -> str:
    return format_string(text, args, kwargs, call.budget)


_STRING: dict[str, Function] = {
    **{
        name: _plain(name)
        for name in (
            "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha",
            "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isspace", "isupper",
            "lower", "lstrip", "partition", "removeprefix", "removesuffix", "rfind", "rindex",
            "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
            "swapcase", "title", "upper",
        )
    },
    **{name: _padded(name) for name in ("center", "ljust", "rjust", "zfill")},
    "format": _format,
    "join": _join,
    "replace": _replace,
}  # fmt: skip


# --- lists and tuples ---


def _append(call: Call, items: TrackedList, value: Any, /) -> None:
    call.budget.spend(1)
    items.append(value)
    items.marks.append(call.origin)


def _extend(call: Call, items: TrackedList, iterable: Any, /) -> None:
    for value, mark in list(slots(iterable, call)):
        items.append(value)
        items.marks.append(mark)


def _insert(call: Call, items: TrackedList, index: int, value: Any, /) -> None:
    call.budget.spend(1 + len(items) // 16)
    items.insert(index, value)
    items.marks.insert(index, call.origin)


def _pop(call: Call, items: TrackedList, index: int = -1, /) -> Any:
    call.budget.spend(1 + len(items) // 16)
    value = items.pop(index)
    items.marks.pop(index)
    return value


def _remove(call: Call, items: TrackedList, value: Any, /) -> None:
    _pop(call, items, _index(call, items, value))


def _index(call: Call, items: TrackedList | TrackedTuple, value: Any, /) -> int:
    call.budget.charge(items)
    call.budget.charge(value)
    return items.index(value)


def _count(call: Call, items: TrackedList | TrackedTuple, value: Any, /) -> int:
    call.budget.charge(items)
    call.budget.charge(value)
    return items.count(value)


def _reverse(call: Call, items: TrackedList, /) -> None:
    call.budget.spend(len(items))
    items.reverse()
    items.marks.reverse()


def _sort(call: Call, items: TrackedList, /, *, reverse: bool = False) -> None:
    call.budget.charge(items)
    pairs = ordered(zip(items, items.marks, strict=True), reverse=reverse)
    items[:] = [value for value, _ in pairs]
    items.marks[:] = [mark for _, mark in pairs]


def _clear_list(call: Call, items: TrackedList, /) -> None:
    items.clear()
    items.marks.clear()


_TUPLE: dict[str, Function] = {"count": _count, "index": _index}
_LIST: dict[str, Function] = {
    **_TUPLE,
    "append": _append,
    "clear": _clear_list,
    "copy": LIBRARY["copy.copy"],
    "extend": _extend,
    "insert": _insert,
    "pop": _pop,
    "remove": _remove,
    "reverse": _reverse,
    "sort": _sort,
}


# --- dicts ---


def _get(call: Call, items: TrackedDict, key: Any, default: Any = None, /) -> Any:
    return items.get(checked_key(key), default)


def _keys(call: Call, items: TrackedDict, /) -> Produced:
    call.budget.spend(len(items))
    return Produced.of(items.keys(), [items.marks[key] for key in items])


def _values(call: Call, items: TrackedDict, /) -> Produced:
    call.budget.spend(len(items))
    return Produced.of(items.values(), [items.marks[key] for key in items])


def _items(call: Call, items: TrackedDict, /) -> Produced:
    call.budget.spend(len(items))
    marks = [items.marks[key] for key in items]
    rows = [
        TrackedTuple.of(row, (mark, mark)) for row, mark in zip(items.items(), marks, strict=True)
    ]
    return Produced.of(rows, marks)


def _take(call: Call, items: TrackedDict, key: Any, default: Any = _MISSING, /) -> Any:
    if checked_key(key) in items:
        return items.take(key)
    if default is not _MISSING:
        return default
    if isinstance(items, BaseDict):
        return None
    raise EvaluationError(f"pop() of a key the dict has not: {key!r:.80}")


def _setdefault(call: Call, items: TrackedDict, key: Any, default: Any = None, /) -> Any:
    if checked_key(key) not in items:
        call.budget.charge(default)
        items.put(key, default, call.origin)
    return items[key]


def _clear_dict(call: Call, items: TrackedDict, /) -> None:
    items.clear()
    items.marks.clear()


def make_dict(call: Call, source: Any) -> TrackedDict:
    """Return what ``dict(source)`` is: a copy of a dict, or a dict of pairs."""
    result = TrackedDict()
    if isinstance(source, TrackedDict):
        call.budget.spend(len(source))
        for key, value in source.items():
            result.put(key, value, source.marks[key])
        return result
    for pair, mark in slots(source, call):
        entry = list(slots(pair, call))
        if len(entry) != 2:
            raise TypeError("dict() needs a dict or pairs of a key and a value")
        result.put(checked_key(entry[0][0]), entry[1][0], mark)
    return result


def _update(call: Call, items: TrackedDict, source: Any = None, /, **kwargs: Any) -> None:
    news = TrackedDict() if source is None else make_dict(call, source)
    for key, value in kwargs.items():
        news.put(key, value, call.origin)
    call.budget.charge(news)
    if isinstance(items, BaseDict):
        merge_from_update(items, news)
        return
    for key, value in news.items():
        items.put(key, value, news.marks[key])


def _merge(call: Call, items: BaseDict, other: TrackedDict, /) -> None:
    if not isinstance(other, TrackedDict):
        raise TypeError(f"merge() needs a dict, got {type_name(other)}")
    call.budget.charge(items)
    call.budget.charge(other)
    base = BaseDict() if other.get(DELETE_KEY) else items
    result = merged(other, base, lenient=True)
    result.pop(DELETE_KEY, None)
    _clear_dict(call, items)
    for key, value in result.items():
        items.put(key, value, result.marks[key])


_DICT: dict[str, Function] = {
    "clear": _clear_dict,
    "copy": LIBRARY["copy.copy"],
    "get": _get,
    "items": _items,
    "keys": _keys,
    "pop": _take,
    "setdefault": _setdefault,
    "update": _update,
    "values": _values,
}
_BASE_DICT: dict[str, Function] = {**_DICT, "merge": _merge}


# --- sets ---


def _change_set(name: str) -> Function:
    method: Callable[..., Any] = getattr(set, name)

    def apply(call: Call, items: set[Any], value: Any, /) -> None:
        method(items, checked_key(value))

    return apply


def _combine_sets(name: str) -> Function:
    method: Callable[..., Any] = getattr(set, name)

    def apply(call: Call, items: set[Any], *others: Any) -> Any:
        call.budget.spend(len(items))
        others = tuple({checked_key(item) for item in values_of(other, call)} for other in others)
        return method(items, *others)

    return apply


_SET: dict[str, Function] = {
    **{name: _change_set(name) for name in ("add", "discard", "remove")},
    **{
        name: _combine_sets(name)
        for name in (
            "difference", "intersection", "isdisjoint", "issubset", "issuperset",
            "symmetric_difference", "union", "update",
        )
    },
    "copy": LIBRARY["copy.copy"],
}  # fmt: skip

_METHODS: tuple[tuple[type, Mapping[str, Function]], ...] = (
    (str, _STRING),
    (TrackedList, _LIST),
    (TrackedTuple, _TUPLE),
    (BaseDict, _BASE_DICT),
    (TrackedDict, _DICT),
    (set, _SET),
)
