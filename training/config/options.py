"""``--cfg-options model.backbone.depth=50``: parsing and applying, by MMEngine's rules.

Source of the rules: ``DictAction`` and ``Config.merge_from_dict`` of MMEngine 0.10. Differences:
spaces inside a value are kept, and an element of a list or tuple can be set to any value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploykit.errors import ConfigError
from deploykit.training.config.limits import Budget, EvaluationError, check_integer
from deploykit.training.config.merge import MergeError, merged
from deploykit.training.config.tracked import Origin, TrackedDict, tracked

OPTIONS_LABEL = "<options>"
_MAX_BRACKETS = 50
_OPENING, _CLOSING = "([", ")]"


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` options.

    A value is an integer, a float, ``true`` or ``false`` (in any case), ``None``, or else a string,
    whose outer quotes are dropped. ``[1,2]`` and ``1,2`` are lists, ``(1,2)`` is a tuple, and they
    nest.

    Args:
        options: Strings like ``"model.backbone.depth=50"`` or ``"train_pipeline.0.prob=0.3"``.

    Returns:
        From dotted key to value; a key that is given twice has its last value.

    Raises:
        ConfigError: An option has no ``=`` or no key, or its brackets do not match.

    Examples:
        >>> parse_options(["lr=0.01", "steps=[8,11]", "scale=(640,480)", "name=small"])
        {'lr': 0.01, 'steps': [8, 11], 'scale': (640, 480), 'name': 'small'}
    """
    result: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"the option '{option:.200}' is not of the form KEY=VALUE")
        if not all(key.split(".")):
            raise ConfigError(f"the key '{key:.200}' of an option has an empty part")
        try:
            result[key] = _value(text, 0)
        except (EvaluationError, ValueError) as error:
            raise ConfigError(f"the option '{option:.200}': {error}") from None
    return result


def _value(text: str, depth: int) -> Any:
    if depth > _MAX_BRACKETS:
        raise EvaluationError(f"brackets are nested deeper than {_MAX_BRACKETS} levels")
    text = text.strip().strip("'\"").strip()
    if "," not in text and text[:1] + text[-1:] not in ("()", "[]"):
        return _scalar(text)
    commas, whole = _scan(text)
    if whole:
        inner = text[1:-1]
        items = [_value(part, depth + 1) for part in _split(inner, _scan(inner)[0])]
        return tuple(items) if text[0] == "(" else items
    if commas:
        return [_value(part, depth + 1) for part in _split(text, commas)]
    return _scalar(text)


def _scan(text: str) -> tuple[list[int], bool]:
    """Return where commas stand outside brackets, and whether one pair encloses all of the text."""
    commas: list[int] = []
    closers: list[str] = []
    whole = text[:1] in _OPENING and bool(text)
    for position, char in enumerate(text):
        if char in _OPENING:
            closers.append(_CLOSING[_OPENING.index(char)])
        elif char in _CLOSING:
            if not closers or closers.pop() != char:
                raise EvaluationError(f"'{char}' closes no bracket in '{text:.80}'")
            whole = whole and (bool(closers) or position == len(text) - 1)
        elif char == "," and not closers:
            commas.append(position)
    if closers:
        raise EvaluationError(f"a '{closers[-1]}' is missing in '{text:.80}'")
    return commas, whole


def _split(text: str, commas: list[int]) -> list[str]:
    """Return the parts between commas; a comma at the end adds none."""
    starts = [0, *(comma + 1 for comma in commas)]
    parts = [text[start:end] for start, end in zip(starts, [*commas, len(text)], strict=True)]
    return parts if parts[-1].strip() else parts[:-1]


def _scalar(text: str) -> Any:
    for kind in (int, float):
        try:
            return check_integer(kind(text))
        except ValueError:
            continue
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return None if text == "None" else text


def apply_options(
    config: TrackedDict, options: Mapping[str, Any] | Sequence[str], budget: Budget
) -> TrackedDict:
    """Return a config with options merged in.

    Args:
        config: The config.
        options: ``KEY=VALUE`` strings, or a mapping from dotted keys to values.
        budget: Pays for the merge.

    Raises:
        ConfigError: An option cannot be parsed or does not fit; the message names the key.
    """
    if isinstance(options, str):
        raise ConfigError("options must be a list of KEY=VALUE strings or a mapping, got a string")
    entries = options if isinstance(options, Mapping) else parse_options(options)
    tree = TrackedDict()
    for number, (dotted, value) in enumerate(entries.items(), 1):
        origin = Origin(OPTIONS_LABEL, number, 1)
        try:
            _put(tree, dotted, tracked(value, origin), origin)
        except EvaluationError as error:
            raise ConfigError(f"the option '{dotted}': {error}") from None
    try:
        budget.charge(tree)
        return merged(tree, config, indices=True)
    except MergeError as error:
        raise ConfigError(str(error), *error.origin) from None


def _put(tree: TrackedDict, dotted: Any, value: Any, origin: Origin) -> None:
    if not isinstance(dotted, str) or not all(dotted.split(".")):
        raise EvaluationError("keys are names joined by dots")
    *parents, last = dotted.split(".")
    node = tree
    for parent in parents:
        if parent not in node:
            node.put(parent, TrackedDict(), origin)
        node = node[parent]
        if not isinstance(node, TrackedDict):
            raise EvaluationError(f"an earlier option has set '{parent}' to a value already")
    node.put(last, value, origin)
