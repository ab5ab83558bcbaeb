"""What an evaluation works on: names, values of the base, elements, and where errors stand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deploykit.training.config.dialect import RESERVED_NAMES, suggestion
from deploykit.training.config.functions import Call, slots
from deploykit.training.config.imports import ImportedName
from deploykit.training.config.limits import Budget, EvaluationError
from deploykit.training.config.methods import methods_of
from deploykit.training.config.source import Source
from deploykit.training.config.templates import Templates
from deploykit.training.config.tracked import (
    BaseDict,
    Origin,
    Produced,
    TrackedDict,
    TrackedList,
    TrackedTuple,
    checked_key,
    type_name,
)

# What pure operations on checked operands raise; anything else would be an error of ours.
OPERATION_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError)


class Evaluation:
    """The state of interpreting one file.

    Args:
        source: The file.
        base: The merged bases of the file, which ``_base_`` stands for.
        budget: Pays for every step.
    """

    def __init__(self, source: Source, base: BaseDict, budget: Budget) -> None:
        self.source, self.base, self.budget = source, base, budget
        self.scopes: list[TrackedDict] = [TrackedDict()]
        self.templates = Templates(source.path, source.environment, self.base_value)

    @contextmanager
    def operation(self, node: ast.expr | ast.stmt) -> Iterator[None]:
        """Turn what an operation on values raises into an error at ``node``."""
        try:
            yield
        except (EvaluationError, *OPERATION_ERRORS) as error:
            detail = str(error.args[-1]) if error.args else type(error).__name__
            if isinstance(error, KeyError):
                detail = f"there is no key '{detail:.80}'"
            raise self.source.error(node, detail) from None

    @contextmanager
    def located(self, node: ast.stmt) -> Iterator[None]:
        """Turn a refusal into an error at ``node``."""
        try:
            yield
        except EvaluationError as error:
            raise self.source.error(node, str(error)) from None

    def call_at(self, node: ast.expr | ast.stmt | ast.keyword) -> Call:
        """Return the context for a function called at ``node``."""
        return Call(self.budget, self.source.origin(node))

    # --- names and what they stand for ---

    def lookup(self, name: str) -> Any:
        """Return the value of a name, innermost scope first; :class:`KeyError` if it has none."""
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise KeyError(name)

    def base_value(self, path: str) -> Any:
        """Return the value of the base at a dotted path.

        Raises:
            EvaluationError: There is none.
        """
        if not self.base:
            raise EvaluationError(f"'_base_.{path}' does not exist: the config has no '_base_'")
        value: Any = self.base
        for key in path.split("."):
            if not isinstance(value, TrackedDict) or key not in value:
                known = value if isinstance(value, TrackedDict) else ()
                raise EvaluationError(
                    f"'_base_.{path}' does not exist in the base{suggestion(key, known)}"
                )
            value = value[key]
        return value

    # --- elements and attributes ---

    def element(self, value: Any, index: Any, node: ast.expr) -> Any:
        """Return ``value[index]``; ``node`` is where errors stand."""
        with self.operation(node):
            if isinstance(value, TrackedDict):
                return self.item(value, index)
            if not isinstance(value, str | TrackedList | TrackedTuple | range | Produced):
                raise TypeError(f"{type_name(value)} has no elements")
            part = value[index]
            if isinstance(index, slice):
                self.budget.spend(len(part))
                if isinstance(value, TrackedList):
                    return TrackedList(part, value.marks[index])
                if isinstance(value, TrackedTuple | Produced):
                    return type(value).of(part, value.marks[index])
            return part

    def item(self, value: TrackedDict, key: Any) -> Any:
        """Return the value of a key that a dict must have."""
        if checked_key(key) not in value:
            hint = suggestion(key, value) if isinstance(key, str) else ""
            raise EvaluationError(f"the dict has no key {key!r:.80}{hint}")
        return value[key]

    def check_attribute(self, value: Any, name: str) -> None:
        """Refuse an attribute of anything but a dict of the base, and every private attribute."""
        if name.startswith("__"):
            raise EvaluationError(f"the attribute '{name}' cannot be used in a config")
        if isinstance(value, BaseDict):
            if name in methods_of(value) and name not in value:
                raise EvaluationError(f"the method '{name}' can only be called")
            return
        if isinstance(value, TrackedDict):
            raise EvaluationError(
                f"'.{name}' works only on dicts that come from a base; write ['{name}']"
            )
        raise EvaluationError(f"{type_name(value)} has no attribute '{name}' in a config")

    def imported_path(self, node: ast.Attribute) -> str | None:
        """Return the dotted path of an attribute of an import, None for other attributes."""
        path = attribute_path(node)
        if path is None:
            return None
        root, _, rest = path.partition(".")
        try:
            value = self.lookup(root)
        except KeyError:
            return None
        return f"{value.dotted}.{rest}" if isinstance(value, ImportedName) else None

    # --- assignment ---

    def bind(self, target: ast.expr, value: Any, origin: Origin) -> None:
        """Assign a value to a target: a name, or a tuple or list of targets."""
        if isinstance(target, ast.Name):
            self.check_assignable(target)
            self.scopes[-1].put(target.id, value, origin)
        elif isinstance(target, ast.Tuple | ast.List):
            self._unpack(target, value)
        else:
            self.store(target, value)

    def check_assignable(self, target: ast.Name) -> None:
        """Refuse names that a config may not assign."""
        name = target.id
        if name == "_base_":
            message = "'_base_' can only be assigned once, at the top level"
        elif name in RESERVED_NAMES:
            message = f"'{name}' is a function of the dialect and cannot be assigned"
        elif name.startswith("__") and name.endswith("__"):
            message = f"the name '{name}' cannot be assigned in a config"
        else:
            return
        raise self.source.error(target, message)

    def store(self, target: ast.expr, value: Any) -> None:
        """Assign to an attribute or subscript; only statements can."""
        raise self.source.error(target, "a comprehension can only assign names")

    def _unpack(self, target: ast.Tuple | ast.List, value: Any) -> None:
        with self.operation(target):
            pairs = list(slots(value, self.call_at(target)))
        stars = [n for n, part in enumerate(target.elts) if isinstance(part, ast.Starred)]
        if len(stars) > 1:
            raise self.source.error(target, "only one target can have a star")
        extra = len(pairs) - len(target.elts)
        if extra < -len(stars) or (extra and not stars):
            raise self.source.error(
                target, f"{len(target.elts)} names cannot take {len(pairs)} values"
            )
        position = 0
        for part in target.elts:
            if isinstance(part, ast.Starred):
                taken = pairs[position : position + extra + 1]
                position += extra + 1
                items = TrackedList([item for item, _ in taken], [mark for _, mark in taken])
                self.bind(part.value, items, self.source.origin(part))
            else:
                self.bind(part, pairs[position][0], self.source.origin(part))
                position += 1


def attribute_path(node: ast.expr) -> str | None:
    """Return ``"a.b.c"`` for a name with attributes, None for other expressions."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(names)])
