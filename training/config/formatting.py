"""Text from values: ``str()``, f-strings, ``str.format`` and ``%``, without attribute access.

Python's own ``str.format`` can read any attribute of its arguments, and every format can ask for a
width of a gigabyte. Here a replacement field is a position or a name, and widths are bounded.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploykit.training.config.limits import MAX_FORMAT_WIDTH, Budget, EvaluationError

_PERCENT_FIELD = re.compile(
    r"%(?:\((?P<name>[^()]*)\))?[#0\- +]*(?P<width>\*|\d*)(?:\.(?P<precision>\*|\d*))?"
    r"[hlL]?(?P<kind>.?)",
    re.DOTALL,
)
_CONVERSIONS: dict[str, Callable[[Any], str]] = {"s": str, "r": repr, "a": ascii}


def text_of(value: Any, budget: Budget) -> str:
    """Return ``str(value)``, paid for in full."""
    budget.charge(value)
    return str(value)


def format_value(value: Any, conversion: str | None, spec: str, budget: Budget) -> str:
    """Return ``format(value, spec)`` after an optional ``!s``, ``!r`` or ``!a`` conversion."""
    budget.charge(value)
    if conversion:
        if conversion not in _CONVERSIONS:
            raise EvaluationError(f"unknown conversion '!{conversion}'; known are !s, !r and !a")
        value = _CONVERSIONS[conversion](value)
    for digits in re.findall(r"\d+", spec):
        _check_width(digits)
    if spec and not isinstance(value, str | int | float):
        raise EvaluationError(f"a format specification '{spec}' needs a string or a number")
    result = format(value, spec)
    budget.spend_text(len(result))
    return result


class _Fields:
    """The arguments of one ``format`` call, and how its fields refer to them so far."""

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        self.automatic = 0
        self.manual = False

    def value(self, field: str) -> Any:
        """Return the argument that a replacement field names."""
        if "." in field or "[" in field:
            raise EvaluationError(
                f"the replacement field '{{{field}}}' reads an attribute or item; "
                "format fields may only be a position or a name"
            )
        if field == "":
            self.automatic += 1
            position = self.automatic - 1
        elif field.isdecimal() and len(field) <= 4:
            self.manual = True
            position = int(field)
        elif field in self.kwargs:
            return self.kwargs[field]
        else:
            raise EvaluationError(f"format() has no argument named '{field}'")
        if self.manual and self.automatic:
            raise EvaluationError("format() fields are either all numbered or all unnumbered")
        if position >= len(self.args):
            raise EvaluationError(f"format() has no argument {position}")
        return self.args[position]


def format_string(
    template: str, args: Sequence[Any], kwargs: Mapping[str, Any], budget: Budget
) -> str:
    """Return ``template.format(*args, **kwargs)``, refusing fields like ``{0.name}`` or ``{0[1]}``.

    Args:
        template: The string with replacement fields.
        args: Values of numbered and unnumbered fields.
        kwargs: Values of named fields.
        budget: Pays for the text.
    """
    return _filled(template, _Fields(args, kwargs), budget, nested=False)


def _filled(template: str, fields: _Fields, budget: Budget, *, nested: bool) -> str:
    parts: list[str] = []
    for literal, field, spec, conversion in string.Formatter().parse(template):
        budget.spend_text(len(literal))
        parts.append(literal)
        if field is None:
            continue
        if nested and spec:
            raise EvaluationError("format specifications are nested too deeply")
        value = fields.value(field)
        filled_spec = _filled(spec, fields, budget, nested=True) if spec else ""
        parts.append(format_value(value, conversion, filled_spec, budget))
    return "".join(parts)


def percent_format(template: str, values: Any, budget: Budget) -> str:
    """Return ``template % values`` with bounded widths."""
    budget.spend_text(len(template))
    budget.charge(values)
    for match in _PERCENT_FIELD.finditer(template):
        for width in (match["width"], match["precision"]):
            if width == "*":
                raise EvaluationError("a '*' width in a '%' format is not allowed; write a number")
            _check_width(width or "0")
        if match["kind"] == "(":
            raise EvaluationError("the name in a '%' format may not contain parentheses")
        if match["name"] is not None and isinstance(values, dict):
            # The same entry may be written many times; each time is paid for.
            budget.charge(values.get(match["name"]))
    result = template % (tuple(values) if isinstance(values, tuple) else values)
    budget.spend_text(len(result))
    return result


def _check_width(digits: str) -> None:
    if len(digits) > 5 or int(digits) > MAX_FORMAT_WIDTH:
        raise EvaluationError(
            f"the width or precision {digits[:12]} of a format is over {MAX_FORMAT_WIDTH}"
        )
