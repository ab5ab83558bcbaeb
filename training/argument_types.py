"""Whether the values in a config fit the annotations of what they are passed to."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union

_NUMBERS = (bool, int, float)


def misfit(entry: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the first argument of an unsuitable kind.

    Only kinds are told apart: numbers, strings, dicts, and lists or tuples. ``None`` and parameters
    with any other annotation always fit, so that nothing is refused that the code could handle.

    Args:
        entry: A class or function.
        arguments: Values by parameter name.

    Returns:
        A clause such as ``"num_classes must be a number, got 'one'"``, or ``None``.
    """
    hints = _hints(entry)
    for name, value in arguments.items():
        expected = _kinds(hints.get(name, Any))
        actual = _kind_of(value)
        if expected and actual and actual not in expected:
            return f"{name} must be {' or '.join(sorted(expected))}, got {value!r:.80}"
    return None


def _hints(entry: Callable[..., Any]) -> dict[str, Any]:
    function = entry.__init__ if inspect.isclass(entry) else entry
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # a name imported for type checking only, or no annotations
        return {}


def _kinds(hint: Any) -> set[str]:
    """Return the kinds of value that a type hint admits; empty when it admits any."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        kinds = [_kinds(member) for member in members]
        return set().union(*kinds) if all(kinds) else set()
    if origin is Literal:
        kinds_of_values = {_kind_of(value) for value in typing.get_args(hint)}
        return {kind for kind in kinds_of_values if kind}
    base = origin or hint
    if base in _NUMBERS:
        return {"a number"}
    if base is str:
        return {"a string"}
    if not inspect.isclass(base):
        return set()
    if issubclass(base, Mapping):
        return {"a dict"}
    return {"a list or tuple"} if issubclass(base, Sequence) else set()


def _kind_of(value: Any) -> str | None:
    if isinstance(value, str):
        return "a string"
    if isinstance(value, _NUMBERS):
        return "a number"
    if isinstance(value, Mapping):
        return "a dict"
    return "a list or tuple" if isinstance(value, (list, tuple)) else None
