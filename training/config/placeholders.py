"""``${key}`` in strings: the value of another key, as MMDetection's tools fill it in."""

from __future__ import annotations

import re
from typing import Any

from deploykit.training.config.limits import Budget, EvaluationError, check_depth
from deploykit.training.config.tracked import (
    TrackedDict,
    TrackedList,
    TrackedTuple,
    copied,
    type_name,
)

_PLACEHOLDER = re.compile(r"\$\{([a-zA-Z\d_.]+)\}")


def fill_placeholders(value: Any, root: TrackedDict, budget: Budget) -> Any:
    """Return a value with every ``${key}`` in its strings replaced by that value of the config.

    A string that is nothing but a placeholder becomes the value itself; within other text the value
    must be a string, number, boolean or ``None``. What it refers to may hold placeholders itself.

    Args:
        value: A value of the config; containers are changed in place where that is possible.
        root: The config that keys are looked up in: ``${model.neck}``.
        budget: Pays for every step.

    Raises:
        EvaluationError: A placeholder names no key, refers to itself, or stands for a container
            within text.
    """
    return _Filler(root, budget).fill(value, 0)


class _Filler:
    def __init__(self, root: TrackedDict, budget: Budget) -> None:
        self._root, self._budget = root, budget
        self._open: list[str] = []

    def fill(self, value: Any, depth: int) -> Any:
        check_depth(depth)
        self._budget.spend(1)
        if isinstance(value, str):
            return self._text(value, depth) if "${" in value else value
        if isinstance(value, TrackedDict):
            for key in list(value):
                filled = self.fill(value[key], depth + 1)
                if filled is not value[key]:
                    value.put(key, filled, value.marks[key])
        elif isinstance(value, TrackedList | TrackedTuple):
            items = [self.fill(item, depth + 1) for item in value]
            if any(new is not old for new, old in zip(items, value, strict=True)):
                if isinstance(value, TrackedTuple):
                    return TrackedTuple.of(items, value.marks)
                return TrackedList(items, value.marks)
        return value

    def _text(self, text: str, depth: int) -> Any:
        whole = _PLACEHOLDER.fullmatch(text)
        if whole:
            return self._value(whole[1], depth)
        filled = _PLACEHOLDER.sub(lambda match: self._in_text(match, depth), text)
        self._budget.spend_text(len(filled))
        return filled

    def _in_text(self, match: re.Match[str], depth: int) -> str:
        value = self._value(match[1], depth)
        if isinstance(value, str | int | float) or value is None:
            return str(value)
        raise EvaluationError(
            f"'{match[0]}' within text is {type_name(value)}; let it stand alone in its string"
        )

    def _value(self, path: str, depth: int) -> Any:
        if path in self._open:
            raise EvaluationError(f"'${{{path}}}' refers to itself")
        value: Any = self._root
        for part in path.split("."):
            if not isinstance(value, dict) or part not in value:
                raise EvaluationError(f"'${{{path}}}' names no key of the config")
            value = value[part]
        self._open.append(path)
        try:
            return self.fill(copied(value, self._budget), depth + 1)
        finally:
            self._open.pop()
