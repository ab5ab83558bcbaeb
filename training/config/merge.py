"""How a config inherits from its bases, by MMEngine's rules, with origins carried along.

Source of the rules: ``Config._merge_a_into_b``, ``ConfigDict.update`` and ``ConfigDict.merge`` of
MMEngine 0.10.
"""

from __future__ import annotations

from typing import Any

from deploykit.training.config.limits import EvaluationError
from deploykit.training.config.tracked import (
    DELETE_KEY,
    BaseDict,
    Origin,
    TrackedDict,
    TrackedList,
    TrackedTuple,
    type_name,
)


class MergeError(EvaluationError):
    """A config that does not fit its base.

    Args:
        message: What is wrong.
        origin: The key of the child that does not fit.
    """

    def __init__(self, message: str, origin: Origin) -> None:
        super().__init__(message)
        self.origin = origin


def merged(
    child: TrackedDict,
    base: TrackedDict,
    *,
    indices: bool = False,
    lenient: bool = False,
    path: str = "",
) -> TrackedDict:
    """Return ``base`` overridden by ``child``; neither is changed.

    A dict in both is merged key by key, unless the child's has ``_delete_=True``; anything else of
    the child replaces what the base has.

    Args:
        child: What overrides.
        base: What is overridden.
        indices: Whether digits as keys select elements of lists and tuples of the base, as options
            of the command line may.
        lenient: Whether a dict silently replaces something of the base that is not a dict.
        path: Dotted key of these dicts, for messages.

    Raises:
        EvaluationError: A dict of the child meets something else in the base, or an index is out of
            range; the message names the key.
    """
    result = type(base)()
    for key, value in base.items():
        TrackedDict.put(result, key, value, base.marks[key])
    for key, value in child.items():
        if key == DELETE_KEY and path:
            continue
        where, origin = f"{path}.{key}" if path else str(key), child.marks[key]
        if key in result:
            value = _override(value, result[key], origin, where, indices, lenient)
        TrackedDict.put(result, key, value, origin)
    return result


def _override(
    value: Any, old: Any, origin: Origin, where: str, indices: bool, lenient: bool
) -> Any:
    if not isinstance(value, TrackedDict) or value.get(DELETE_KEY):
        return value
    if isinstance(old, TrackedDict):
        return merged(value, old, indices=indices, lenient=lenient, path=where)
    if indices and isinstance(old, TrackedList | TrackedTuple):
        return _merged_elements(value, old, where)
    if lenient:
        return value
    raise MergeError(
        f"'{where}' is a dict here but {type_name(old)} in the base, so it cannot be merged; "
        f"add {DELETE_KEY}=True to replace it",
        origin,
    )


def _merged_elements(
    child: TrackedDict, base: TrackedList | TrackedTuple, path: str
) -> TrackedList | TrackedTuple:
    items, marks = list(base), list(base.marks)
    for key, value in child.items():
        where, origin = f"{path}.{key}", child.marks[key]
        if not (isinstance(key, str) and key.isdecimal()):
            raise MergeError(
                f"'{path}' is {type_name(base)}, so '{where}' needs an index, not '{key}'", origin
            )
        if len(key) > 9 or int(key) >= len(items):
            raise MergeError(
                f"index out of range in '{where}': '{path}' has {len(items)} elements", origin
            )
        index = int(key)
        items[index] = _override(value, items[index], origin, where, True, False)
        marks[index] = origin
    if isinstance(base, TrackedList):
        return TrackedList(items, marks)
    return TrackedTuple.of(items, marks)


def merge_from_update(target: BaseDict, news: TrackedDict) -> None:
    """Merge ``news`` into ``target`` in place; where both have a dict it is merged as well."""
    for key, value in news.items():
        old = target.get(key)
        if isinstance(value, TrackedDict) and value.get(DELETE_KEY):
            # MMEngine keeps the key and merges nevertheless; no such config can be built there.
            target.put(key, value, news.marks[key])
        elif isinstance(old, BaseDict) and isinstance(value, TrackedDict):
            merge_from_update(old, value)
        else:
            target.put(key, value, news.marks[key])
